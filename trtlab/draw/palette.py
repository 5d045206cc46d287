"""The one palette of the course: a colour per kind of operation, grey for what vanished."""

from __future__ import annotations

import re
from typing import NamedTuple

from trtlab.engine import Layer


class Ink(NamedTuple):
    """A fill colour and the colour of the text that is readable on it."""

    fill: str
    text: str


# Chosen to be told apart with each kind of colour blindness; every use carries a label too.
KINDS: dict[str, Ink] = {
    "convolution": Ink("#1A6FC9", "#FFFFFF"),
    "matrix multiplication": Ink("#5E0D36", "#FFFFFF"),
    "attention": Ink("#2A1D94", "#FFFFFF"),
    "pointwise": Ink("#F4B42A", "#1F2933"),
    "normalisation, reduction": Ink("#5A8012", "#FFFFFF"),
    "pooling": Ink("#80C2F5", "#1F2933"),
    "embedding, gather": Ink("#784C36", "#FFFFFF"),
    "quantize": Ink("#E58492", "#1F2933"),
    "data movement": Ink("#EEDDA2", "#1F2933"),
    "other": Ink("#3F5D7A", "#FFFFFF"),
}

VANISHED = Ink("#E1E5EA", "#6B7684")
UNASKED = Ink("#FFF4E5", "#A84B00")  # a kernel that no ONNX node asked for: its fill, and its border and text

CARD, EDGE, OUTLINE, BAR = "#FCFCFA", "#D5DAE1", "#8996A5", "#9AA8B8"
TEXT, MUTED = "#1F2933", "#52606D"

_OPS = {
    "convolution": "Conv ConvTranspose ConvInteger QLinearConv DeformConv",
    "matrix multiplication": "MatMul Gemm Einsum MatMulInteger QLinearMatMul LSTM GRU RNN",
    "attention": "Attention MultiHeadAttention GroupQueryAttention RotaryEmbedding",
    "normalisation, reduction": "BatchNormalization LayerNormalization InstanceNormalization GroupNormalization "
    "RMSNormalization SimplifiedLayerNormalization LpNormalization LRN Softmax LogSoftmax Hardmax ReduceMean ReduceSum "
    "ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp ArgMax ArgMin TopK "
    "CumSum NonMaxSuppression MeanVarianceNormalization",
    "pooling": "MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool GlobalLpPool MaxRoiPool RoiAlign",
    "embedding, gather": "Gather GatherElements GatherND Scatter ScatterElements ScatterND OneHot",
    "quantize": "QuantizeLinear DequantizeLinear DynamicQuantizeLinear",
    "data movement": "Reshape Flatten Squeeze Unsqueeze Transpose Concat Split Slice Pad Expand Tile Resize Upsample "
    "DepthToSpace SpaceToDepth Identity Cast CastLike Shape Size Constant ConstantOfShape Range Trilu GridSample "
    "EyeLike NonZero Compress ReverseSequence Dropout",
    "other": "If Loop Scan",
}

_KIND_OF_OP = {op: kind for kind, ops in _OPS.items() for op in ops.split()}

# What a tile says where the operation's own name would be too long and its first letters would not do.
_SHORT = {
    "Add": "+", "Sub": "−", "Mul": "×", "Div": "÷", "Neg": "−x", "Relu": "ReLU", "Gemm": "FC", "MatMul": "MM",
    "ConvTranspose": "Conv↑", "LeakyRelu": "LReLU", "PRelu": "PReLU", "HardSwish": "HSw", "Sigmoid": "σ",
    "Softmax": "SoftM", "BatchNormalization": "BN", "LayerNormalization": "LN", "InstanceNormalization": "IN",
    "GroupNormalization": "GN", "RMSNormalization": "RMS", "MaxPool": "MaxP", "AveragePool": "AvgP",
    "GlobalAveragePool": "GAP", "ReduceMean": "Mean", "ReduceSum": "Sum", "ReduceMax": "Max", "ReduceL2": "L2",
    "Reshape": "Rshp", "Flatten": "Flat", "Transpose": "Trsp", "Squeeze": "Sqz", "Unsqueeze": "Usqz", "Concat": "Cat",
    "Gather": "Gath", "Identity": "Id", "Constant": "Const", "ConstantOfShape": "Fill", "Expand": "Expd",
    "Dropout": "Drop", "Resize": "Resz", "QuantizeLinear": "Q", "DequantizeLinear": "DQ", "Attention": "Attn",
    "NonMaxSuppression": "NMS", "Reciprocal": "1/x", "Greater": ">", "Less": "<", "Equal": "=",
}  # fmt: skip


def kind_of_op(op: str) -> str:
    """The kind of an ONNX operation: a key of KINDS; everything that works element by element is "pointwise"."""
    return _KIND_OF_OP.get(op, "pointwise")


def tile_name(op: str, many: int) -> str:
    """What a tile says in a picture of `many` nodes: where there is no room for the name, "+", "LN" or "Bitw…"."""
    if many <= 12 and len(op) <= 12:
        return op
    return _SHORT.get(op) or (op if len(op) <= 5 else f"{op[:4]}…")


def readable_name(layer: Layer) -> str:
    """The layer's name without TensorRT's numbering: "conv1" of "conv1_U4_myl0_3", "Tran" of "__myl_Tran_myl0_7"."""
    return re.sub(r"(_U\d+)?_myl\d+_\d+$", "", layer.name).removeprefix("__myl_")


def errand(layer: Layer) -> str:
    """What a kernel does that runs no node of its own; a helper does a part of a node that another kernel runs."""
    if layer.kind == "data movement":
        return "layout" if len(layer.inputs) == len(layer.outputs) == 1 and not layer.onnx_nodes else "copy"
    return "helper" if layer.onnx_nodes else "added"


def type_of(layer: Layer) -> str:
    """The element type a kernel reads: FP32, FP16, INT8 …; that of indices only where it reads nothing else."""
    names = [tensor.dtype for tensor in (*layer.inputs, *layer.outputs)]
    return next((name for name in names if name not in ("INT64", "INT32", "BOOL", "")), names[0] if names else "")
