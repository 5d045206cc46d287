"""The one palette of the course: a colour per kind of operation, grey for what vanished."""

from __future__ import annotations

import re
import tomllib
from typing import NamedTuple

from trtlab.engine import Layer
from trtlab.files import data_file


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
# Parts of a quantity, such as bytes: no operators, so none of their colours.
QUANTITIES = ("#34465A", "#8FA1B3", "#CBD4DD", "#C77B3B", "#EBCDB2")
TEXT, MUTED = "#1F2933", "#52606D"

with data_file("operators.toml").open("rb") as _file:
    OPERATORS = tomllib.load(_file)
_KIND_OF_OP = {op: kind for kind, ops in OPERATORS["kinds"].items() for op in ops.split()}


def kind_of_op(op: str) -> str:
    """The kind of an ONNX operation: a key of KINDS; everything that works element by element is "pointwise"."""
    return str(_KIND_OF_OP.get(op, "pointwise"))


def tile_name(op: str, many: int) -> str:
    """What a tile says in a picture of `many` nodes: where there is no room for the name, "+", "LN" or "Bitw…"."""
    if many <= 12 and len(op) <= 12:
        return op
    return OPERATORS["short"].get(op) or (op if len(op) <= 5 else f"{op[:4]}…")


def readable_name(layer: Layer) -> str:
    """The layer's name without TensorRT's numbering: "conv1" of "conv1_U4_myl0_3", "Tran" of "__myl_Tran_myl0_7"."""
    return re.sub(r"(_U\d+)?_myl\d+_\d+$", "", layer.name).removeprefix("__myl_")


def errand(layer: Layer) -> str:
    """What a kernel does that runs no node of its own; a helper does a part of a node that another kernel runs."""
    if layer.kind == "data movement":
        turns = len(layer.inputs) == len(layer.outputs) == 1 and not layer.onnx_nodes and layer.type != "copy"
        return "layout" if turns else "copy"
    return "helper" if layer.onnx_nodes else "added"


def type_of(layer: Layer) -> str:
    """The element type a kernel reads: FP32, FP16, INT8 …; that of indices only where it reads nothing else."""
    names = [tensor.dtype for tensor in (*layer.inputs, *layer.outputs)]
    return next((name for name in names if name not in ("INT64", "INT32", "BOOL", "")), names[0] if names else "")
