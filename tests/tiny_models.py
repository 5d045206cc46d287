"""The smallest models that still make TensorRT do something, for the tests; each is a fresh ModelProto."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
Shape = Sequence[int | str]


def node(op: str, inputs: str, outputs: str, name: str | None = None, **attributes: object) -> onnx.NodeProto:
    """A node whose tensors are separated by spaces; it is called after its first output when no name is given."""
    written = outputs.split()
    return helper.make_node(op, inputs.split(), written, name=written[0] if name is None else name, **attributes)


def value(name: str, shape: Shape | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def tensor(name: str, array: object, dtype: str = "float32") -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array, dtype), name)


def weight(name: str, *shape: int, dtype: str = "float32") -> onnx.TensorProto:
    """Random numbers, the same on every call."""
    return tensor(name, np.random.default_rng(len(name)).normal(size=shape) / 4, dtype)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape] | Sequence[onnx.ValueInfoProto],
    outputs: str,
    weights: Sequence[onnx.TensorProto] = (),
    *,
    kind: int = FLOAT,
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model; outputs are names separated by spaces, of unknown shape."""
    ports = [value(n, s, kind) for n, s in inputs.items()] if isinstance(inputs, Mapping) else list(inputs)
    graph = helper.make_graph(list(nodes), "tiny", ports, [value(n, None, kind) for n in outputs.split()], weights)
    domains = [helper.make_opsetid("", opset)] + [helper.make_opsetid(d, 1) for d in {f.domain for f in functions}]
    return helper.make_model(graph, opset_imports=domains, ir_version=8, functions=list(functions))


def conv(batch: int | str = 1) -> onnx.ModelProto:
    """Two convolutions with ReLU and a residual sum."""
    return model(
        [
            node("Conv", "x w1 b1", "conv1", pads=[1, 1, 1, 1]),
            node("Relu", "conv1", "relu1"),
            node("Conv", "relu1 w2", "conv2", pads=[1, 1, 1, 1]),
            node("Add", "conv2 relu1", "sum"),
            node("GlobalAveragePool", "sum", "pool"),
            node("Flatten", "pool", "flat"),
            node("Gemm", "flat w3 b3", "y", "head", transB=1),
        ],
        {"x": (batch, 3, 8, 8)},
        "y",
        [weight("w1", 8, 3, 3, 3), weight("b1", 8), weight("w2", 8, 8, 3, 3), weight("w3", 5, 8), weight("b3", 5)],
    )


def mlp(batch: int | str = 4) -> onnx.ModelProto:
    """Two matrix products with bias and ReLU."""
    return model(
        [
            node("MatMul", "x w1", "fc1"),
            node("Add", "fc1 b1", "biased"),
            node("Relu", "biased", "relu"),
            node("MatMul", "relu w2", "fc2"),
            node("Softmax", "fc2", "y", "probabilities", axis=-1),
        ],
        {"x": (batch, 16)},
        "y",
        [weight("w1", 16, 32), weight("b1", 32), weight("w2", 32, 8)],
    )


def attention() -> onnx.ModelProto:
    """One head of attention over eight tokens, with a layer normalization."""
    return model(
        [
            node("LayerNormalization", "x gain bias", "norm", axis=-1),
            node("MatMul", "norm wq", "q"),
            node("MatMul", "norm wk", "k"),
            node("MatMul", "norm wv", "v"),
            node("Transpose", "k", "kt", perm=[0, 2, 1]),
            node("MatMul", "q kt", "scores"),
            node("Mul", "scores scale", "scaled"),
            node("Softmax", "scaled", "weights", axis=-1),
            node("MatMul", "weights v", "mixed"),
            node("Add", "mixed x", "y", "residual"),
        ],
        {"x": (1, 8, 16)},
        "y",
        [
            weight("gain", 16), weight("bias", 16), weight("wq", 16, 16), weight("wk", 16, 16), weight("wv", 16, 16),
            tensor("scale", 0.25),
        ],
    )  # fmt: skip


def shapes(batch: int | str = "N") -> onnx.ModelProto:
    """A reshape whose target is computed from the input's own size, as exporters write `x.view(x.size(0), -1)`."""
    return model(
        [
            node("Relu", "x", "relu"),
            node("Shape", "relu", "sizes"),
            node("Gather", "sizes zero", "batch", axis=0),
            node("Unsqueeze", "batch zeros", "batch1"),
            node("Concat", "batch1 rest", "target", axis=0),
            node("Reshape", "relu target", "flat"),
            node("MatMul", "flat w", "y", "head"),
        ],
        {"x": (batch, 3, 4)},
        "y",
        [tensor("zero", 0, "int64"), tensor("zeros", [0], "int64"), tensor("rest", [12], "int64"), weight("w", 12, 5)],
    )


def branches(name: str = "choice") -> onnx.ModelProto:
    """An If whose condition is computed from the input."""
    yes = helper.make_graph([node("Relu", "before", "yes_out", "yes")], "yes", [], [value("yes_out", None)])
    no = helper.make_graph([node("Tanh", "before", "no_out", "no")], "no", [], [value("no_out", None)])
    return model(
        [
            node("Mul", "x two", "before"),
            node("ReduceSum", "before", "total", keepdims=0),
            node("Greater", "total zero", "positive"),
            node("If", "positive", "chosen", name, then_branch=yes, else_branch=no),
            node("Add", "chosen two", "y", "after"),
        ],
        {"x": (2, 4)},
        "y",
        [tensor("two", 2.0), tensor("zero", 0.0)],
    )


def loop(name: str = "repeat") -> onnx.ModelProto:
    """A Loop that adds the input to a state three times."""
    body = helper.make_graph(
        [node("Add", "state x", "next", "step"), node("Identity", "more", "still", "keep")],
        "body",
        [value("i", (), TensorProto.INT64), value("more", (), TensorProto.BOOL), value("state", (2, 4))],
        [value("still", (), TensorProto.BOOL), value("next", (2, 4))],
    )
    return model(
        [
            node("Relu", "x", "start"),
            node("Loop", "three yes start", "last", name, body=body),
            node("Relu", "last", "y", "after"),
        ],
        {"x": (2, 4)},
        "y",
        [tensor("three", 3, "int64"), tensor("yes", True, "bool")],
    )


def function(name: str = "twice") -> onnx.ModelProto:
    """A model-local function called twice."""
    opset = [helper.make_opsetid("", 17)]
    square = helper.make_function("own", "Square", ["a"], ["b"], [node("Mul", "a a", "b", "product")], opset)
    return model(
        [
            node("Square", "x", "squared", "first", domain="own"),
            node("Relu", "squared", "relu"),
            node("Square", "relu", "y", name, domain="own"),
        ],
        {"x": (2, 4)},
        "y",
        functions=[square],
    )


def heavy(layers: int = 24) -> onnx.ModelProto:
    """A model that takes TensorRT some seconds: layers of attention that nothing lets it share."""
    nodes, weights, last = [], [], "x"
    for index in range(layers):
        names = [f"{part}{index}" for part in ("q", "k", "v", "t", "s", "p", "m", "r")]
        q, k, v, t, s, p, m, r = names
        nodes += [
            node("MatMul", f"{last} w{q}", q), node("MatMul", f"{last} w{k}", k), node("MatMul", f"{last} w{v}", v),
            node("Transpose", k, t, perm=[0, 2, 1]), node("MatMul", f"{q} {t}", s), node("Softmax", s, p, axis=-1),
            node("MatMul", f"{p} {v}", m), node("Add", f"{m} {last}", r),
        ]  # fmt: skip
        weights += [weight(f"w{name}", 64, 64) for name in (q, k, v)]
        last = r
    nodes.append(node("Relu", last, "y"))
    return model(nodes, {"x": ("N", 32, 64)}, "y", weights)
