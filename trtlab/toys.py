"""Networks small enough to draw whole, written in ONNX's own text form: `toy("t (float[4] x) => (float[4] y) {…}")`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from trtlab.errors import ModelError

_HEADER = '<ir_version: 10, opset_import: ["": 20]>'
TYPES = {"FP32": "float", "FP16": "float16"}  # the name in a model's text of each precision


def toy(text: str, **weights: Any) -> onnx.ModelProto:
    """The model in `text`; each node is called after its first output.

    A weight is a shape, a tuple such as (64, 64, 3, 3), to be filled with random numbers (the same on every call), or
    its value: a number or a list. Floating-point weights have the type of the model's first input. Raises ModelError
    where the text or a shape is wrong.
    """
    try:
        model = onnx.parser.parse_model(_HEADER + text)
        kind = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
        for name, weight in weights.items():
            value = _random(name, weight) if isinstance(weight, tuple) else np.asarray(weight)
            value = value.astype(kind) if value.dtype.kind == "f" else value
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        for node in model.graph.node:
            node.name = node.output[0]
        onnx.checker.check_model(model, full_check=True)
    except (onnx.parser.ParseError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"This is not a model: {error}", fix="compare it with trtlab.toys.PATTERNS.") from error
    return model


def _random(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Small random numbers, others for each name."""
    return np.random.default_rng(np.frombuffer(name.encode(), np.uint8)).normal(size=shape) / 8


@dataclass(frozen=True)
class Pattern:
    """A group of nodes that compilers look for, as a model whose floating-point type can be chosen."""

    text: str
    weights: dict[str, Any]

    def model(self, precision: str = "FP32") -> onnx.ModelProto:
        """The pattern as a model whose tensors are all "FP32" or all "FP16"."""
        return toy(self.text.replace("float[", f"{TYPES[precision]}["), **self.weights)


_IMAGE = "(float[8,64,56,56] x) => (float[8,64,56,56] y)"
_TOKENS = "(float[1,512,256] x) => (float[1,512,256] y)"
_FILTERS, _SQUARE = (64, 64, 3, 3), (256, 256)

PATTERNS = {
    "Pointwise chain": Pattern(
        f"chain {_IMAGE} {{ a = Mul(x, k) b = Add(a, k) c = Sigmoid(b) d = Mul(c, x)"
        " e = Tanh(d) f = Sub(e, k) g = Abs(f) y = Sqrt(g) }",
        {"k": 0.5}),
    "Conv + ReLU": Pattern(
        f"conv {_IMAGE} {{ c = Conv<pads=[1,1,1,1]>(x, w) y = Relu(c) }}", {"w": _FILTERS}),
    "Conv + batch norm + ReLU": Pattern(
        f"norm {_IMAGE} {{ c = Conv<pads=[1,1,1,1]>(x, w) n = BatchNormalization(c, scale, shift, mean, var)"
        " y = Relu(n) }",
        {"w": _FILTERS, "scale": (64,), "shift": (64,), "mean": (64,), "var": [1.0] * 64}),
    "Residual block": Pattern(
        f"block {_IMAGE} {{ c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(c1)"
        " c2 = Conv<pads=[1,1,1,1]>(r, w2, b2) s = Add(c2, x) y = Relu(s) }",
        {"w1": _FILTERS, "b1": (64,), "w2": _FILTERS, "b2": (64,)}),
    "Linear + GELU": Pattern(
        f"gelu {_TOKENS} {{ h = MatMul(x, w) b = Add(h, bias) y = Gelu(b) }}", {"w": _SQUARE, "bias": (256,)}),
    "Layer norm, spelled out": Pattern(
        f"layernorm {_TOKENS} {{ m = ReduceMean(x, axis) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, axis)"
        " e = Add(v, eps) s = Sqrt(e) n = Div(d, s) g = Mul(n, gain) y = Add(g, bias) }",
        {"axis": [-1], "eps": 1e-5, "gain": (256,), "bias": (256,)}),
    "Attention": Pattern(
        f"attention {_TOKENS} {{ q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
        " qb = Add(q, bq) kb = Add(k, bk) vb = Add(v, bv)"
        " q4 = Reshape(qb, heads) k4 = Reshape(kb, heads) v4 = Reshape(vb, heads)"
        " qh = Transpose<perm=[0,2,1,3]>(q4) kh = Transpose<perm=[0,2,3,1]>(k4) vh = Transpose<perm=[0,2,1,3]>(v4)"
        " s = MatMul(qh, kh) t = Mul(s, scale) p = Softmax(t) m = MatMul(p, vh)"
        " mt = Transpose<perm=[0,2,1,3]>(m) mr = Reshape(mt, tokens) y = MatMul(mr, wo) }",
        {"wq": _SQUARE, "wk": _SQUARE, "wv": _SQUARE, "wo": _SQUARE, "bq": (256,), "bk": (256,), "bv": (256,),
         "heads": [1, 512, 4, 64], "tokens": [1, 512, 256], "scale": 0.125}),
    "Transformer MLP": Pattern(
        f"mlp {_TOKENS} {{ h = MatMul(x, w1) hb = Add(h, b1) a = Gelu(hb) o = MatMul(a, w2) ob = Add(o, b2)"
        " r = Add(ob, x) y = LayerNormalization<axis=-1>(r, gain, bias) }",
        {"w1": (256, 1024), "b1": (1024,), "w2": (1024, 256), "b2": (256,), "gain": (256,), "bias": (256,)}),
    "Sibling convolutions": Pattern(
        "siblings (float[8,64,56,56] x) => (float[8,128,56,56] y) { a = Conv<pads=[1,1,1,1]>(x, w1)"
        " b = Conv<pads=[1,1,1,1]>(x, w2) y = Concat<axis=1>(a, b) }",
        {"w1": _FILTERS, "w2": _FILTERS}),
    "Three heads": Pattern(
        "heads (float[64,256] x) => (float[64,80] cls, float[64,4] box, float[64,1] obj) {"
        " c = MatMul(x, w1) cls = Add(c, b1) d = MatMul(x, w2) box = Add(d, b2) e = MatMul(x, w3) obj = Add(e, b3) }",
        {"w1": (256, 80), "b1": (80,), "w2": (256, 4), "b2": (4,), "w3": (256, 1), "b3": (1,)}),
}  # fmt: skip
