"""Broken models, the same for a seed: each ends as an engine or as an error that says where, and leaves nothing behind.

Fifty of them by default; thousands with `pytest -m deep tests/test_fuzz.py`.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import tiny_models as tiny
from conftest import compilers, leftovers
from onnx import TensorProto, helper, numpy_helper

import trtlab as lab
from trtlab.onnx_model import graphs

NUMBERS = (-1, 0, 1, 2, 3, 7, 64, 99, -7, 1 << 20, 2**31 - 1, 2**31, -(2**40), 2**62)
TYPES = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32, TensorProto.INT8, TensorProto.BOOL,
    TensorProto.DOUBLE, TensorProto.BFLOAT16, TensorProto.STRING, TensorProto.UINT16, 0, 77,
)  # fmt: skip
OPS = (
    "Relu", "Conv", "MatMul", "Add", "Transpose", "Reshape", "Gemm", "Concat", "ReduceSum", "Softmax", "Cast", "Slice",
    "Resize", "TopK", "NonZero", "Einsum", "LSTM", "Unique", "Rellu", "Loop", "Pad", "Gather", "BatchNormalization",
    "QuantizeLinear", "ConvTranspose", "MaxPool", "Expand", "Split", "StringNormalizer",
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A broken model: what was done to it, and to which nodes and tensors (() where that cannot be said)."""

    data: bytes
    seed_model: str
    mutation: str
    culprits: frozenset[str]


@dataclass(frozen=True)
class Outcome:
    """How the build of a mutant ended: "engine", the stage of its BuildError, or what should never happen."""

    mutant: Mutant
    end: str
    message: str = ""

    @property
    def named(self) -> bool:
        """The message names a node or tensor that was mutated."""
        return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", self.message) for name in self.mutant.culprits)


def seeds() -> dict[str, onnx.ModelProto]:
    """Valid models of static shape; nodes are called n_…, tensors t_…, so that no name is found by chance."""
    pooled = tiny.model(
        [
            tiny.node("Conv", "x w", "c", strides=[2, 2], pads=[1, 1, 1, 1]),
            tiny.node("BatchNormalization", "c g b m v", "norm"),
            tiny.node("Clip", "norm low high", "clipped"),
            tiny.node("MaxPool", "clipped", "pool", kernel_shape=[2, 2], strides=[2, 2]),
            tiny.node("ReduceMean", "pool", "mean", axes=[2, 3], keepdims=0),
            tiny.node("Concat", "mean mean", "both", axis=1),
            tiny.node("Slice", "both start end axis", "y", "cut"),
        ],
        {"x": (1, 3, 16, 16)},
        "y",
        [
            tiny.weight("w", 8, 3, 3, 3), *(tiny.weight(name, 8) for name in "gbm"), tiny.tensor("v", [1.0] * 8),
            tiny.tensor("low", 0.0), tiny.tensor("high", 6.0),
            *(tiny.tensor(name, [size], "int64") for name, size in (("start", 2), ("end", 9), ("axis", 1))),
        ],
    )  # fmt: skip
    models = {
        "conv": tiny.conv(), "mlp": tiny.mlp(), "attention": tiny.attention(), "shapes": tiny.shapes(2),
        "if": tiny.branches(), "loop": tiny.loop(), "function": tiny.function(), "pooled": pooled,
    }  # fmt: skip
    for model in models.values():
        for graph in (*graphs(model.graph), *model.functions):
            _prefix(graph)
    return models


def _prefix(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    for node in graph.node:
        node.name = f"n_{node.name}"
        node.input[:] = [f"t_{name}" for name in node.input]
        node.output[:] = [f"t_{name}" for name in node.output]
    if isinstance(graph, onnx.FunctionProto):
        graph.input[:] = [f"t_{name}" for name in graph.input]
        graph.output[:] = [f"t_{name}" for name in graph.output]
        return
    for item in (*graph.input, *graph.output, *graph.initializer):
        item.name = f"t_{item.name}"


# A mutation changes the model in place and returns the names of what it touched, or raises where it does not apply.
Mutation = Callable[[random.Random, onnx.ModelProto], set[str]]


def _graph(rng: random.Random, model: onnx.ModelProto) -> onnx.GraphProto:
    """The main graph mostly, else one inside it."""
    return rng.choice([model.graph, model.graph, *graphs(model.graph)])


def _node(rng: random.Random, model: onnx.ModelProto) -> onnx.NodeProto:
    return rng.choice(_graph(rng, model).node)


def _names(*nodes: onnx.NodeProto) -> set[str]:
    """A node and what it writes."""
    return {name for node in nodes for name in (node.name, *node.output) if name}


def drop_edge(rng: random.Random, model: onnx.ModelProto) -> set[str]:
    node = _node(rng, model)
    index = rng.randrange(len(node.input))
    touched = {node.input[index], *_names(node)}
    if rng.random() < 0.5:
        node.input[index] = ""
    else:
        del node.input[index]
    return touched


def rename_edge(rng: random.Random, model: onnx.ModelProto) -> set[str]:
    node = _node(rng, model)
    side = rng.choice([node.input, node.output])
    index = rng.randrange(len(side))
    touched = {side[index], "t_lost", *_names(node)}
    side[index] = "t_lost"
    return touched


def swap_inputs(rng: random.Random, model: onnx.ModelProto) -> set[str]:
    node = _node(rng, model)
    one, two = rng.sample(range(len(node.input)), 2)
    node.input[one], node.input[two] = node.input[two], node.input[one]
    return {*_names(node), node.input[one], node.input[two]}


def cyclic_edge(rng: random.Random, model: onnx.ModelProto) -> set[str]:
    graph = _graph(rng, model)
    last = rng.randrange(len(graph.node))
    first = rng.randrange(last + 1)
    node, later = graph.node[first], graph.node[last]
    node.input[rng.randrange(len(node.input))] = later.output[0]
    return _names(node, later)


def change_op(rng: random.Random, model: onnx.ModelProto) -> set[str]:
    node = _node(rng, model)
    node.op_type = rng.choice(OPS)
    return {*_names(node), node.op_type}


def change_domain(rng: random.Random, model: onnx.ModelProto) -> set[str]:
    node = _node(rng, model)
    node.domain = rng.choice(["com.microsoft", "my.ops", "ai.onnx.ml"])
    if rng.random() < 0.7:
        model.opset_import.append(helper.make_opsetid(node.domain, 1))
    return {*_names(node), node.domain}


def change_attribute(rng: random.Random, model: onnx.ModelProto) -> set[str]:
    nodes = [node for graph in graphs(model.graph) for node in graph.node if node.attribute]
    node = rng.choice(nodes)
    attribute = rng.choice(node.attribute)
    touched = {*_names(node), attribute.name}
    if rng.random() < 0.2:
        node.attribute.remove(attribute)
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = rng.choice(NUMBERS)
    elif attribute.type == onnx.AttributeProto.INTS:
        if rng.random() < 0.3:
            attribute.ints.append(rng.choice(NUMBERS))
        elif attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
    else:
        attribute.CopyFrom(helper.make_attribute(attribute.name, rng.choice(["text", 1.5, [1, 2], float("nan")])))
    return touched


def odd_convolution(rng: random.Random, model: onnx.ModelProto) -> set[str]:
    nodes = [node for node in model.graph.node if node.op_type in ("Conv", "MaxPool")]
    node = rng.choice(nodes)
    name = rng.choice(["pads", "kernel_shape", "strides", "dilations", "group"])
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    number = rng.choice([-3, 0, 2, 5, 50, 10**6, 2**33])
    value = number if name == "group" else [number] * (4 if name == "pads" else 2)
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
    return _names(node)


def _weight(rng: random.Random, model: onnx.ModelProto) -> onnx.TensorProto:
    return rng.choice(model.graph.initializer)


def reshape_weight(rng: random.Random, model: onnx.ModelProto) -> set[str]:
    tensor = _weight(rng, model)
    array = numpy_helper.to_array(tensor)
    shape = list(array.shape)
    way = rng.choice(["flat", "extra", "more", "fewer", "none"])
    if way == "flat":
        shape = [array.size]
    elif way == "extra":
        shape.insert(rng.randint(0, len(shape)), 1)
    elif shape:
        index = rng.randrange(len(shape))
        shape[index] = {"more": shape[index] + 1, "fewer": max(shape[index] - 1, 1), "none": 0}[way]
    tensor.CopyFrom(numpy_helper.from_array(np.resize(array, shape), tensor.name))
    return {tensor.name}


def change_weight_type(rng: random.Random, model: onnx.ModelProto) -> set[str]:
    tensor = _weight(rng, model)
    kind = rng.choice(TYPES)
    try:
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    except (KeyError, TypeError, ValueError, NotImplementedError):
        tensor.data_type = kind
    return {tensor.name}


def change_values(rng: random.Random, model: onnx.ModelProto) -> set[str]:
    tensor = _weight(rng, model)
    array = numpy_helper.to_array(tensor).copy()
    value = (
        rng.choice(NUMBERS) if array.dtype.kind == "i" else rng.choice([float("nan"), float("inf"), 1e38, 0.0, -1.0])
    )
    array.flat[rng.randrange(array.size)] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return {tensor.name}


def remove_weight(rng: random.Random, model: onnx.ModelProto) -> set[str]:
    tensor = _weight(rng, model)
    name = tensor.name
    model.graph.initializer.remove(tensor)
    return {name}


def change_input(rng: random.Random, model: onnx.ModelProto) -> set[str]:
    value = rng.choice(model.graph.input)
    dims = value.type.tensor_type.shape.dim
    if dims and rng.random() < 0.6:
        dims[rng.randrange(len(dims))].dim_value = rng.choice(NUMBERS)
    elif dims and rng.random() < 0.5:
        del dims[-1]
    else:
        dims.add(dim_value=rng.choice([1, 2, 5]))
    return {value.name}


def change_output(rng: random.Random, model: onnx.ModelProto) -> set[str]:
    value = rng.choice(model.graph.output)
    touched = {value.name}
    way = rng.randrange(4)
    if way == 0:
        value.name = "t_lost"
    elif way == 1:
        model.graph.output.add().CopyFrom(value)
    elif way == 2:
        value.type.tensor_type.elem_type = rng.choice(TYPES)
    else:
        value.CopyFrom(tiny.value(value.name, [rng.choice(NUMBERS) for _ in range(rng.randint(0, 5))]))
    return touched | {value.name}


def remove_node(rng: random.Random, model: onnx.ModelProto) -> set[str]:
    graph = _graph(rng, model)
    node = rng.choice(graph.node)
    touched = _names(node)
    graph.node.remove(node)
    return touched


def move_node(rng: random.Random, model: onnx.ModelProto) -> set[str]:
    graph = _graph(rng, model)
    nodes = list(graph.node)
    node = nodes.pop(rng.randrange(len(nodes)))
    nodes.insert(rng.randint(0, len(nodes)), node)
    copies = [onnx.NodeProto.FromString(item.SerializeToString()) for item in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return _names(node)


def change_opset(rng: random.Random, model: onnx.ModelProto) -> set[str]:
    way = rng.randrange(3)
    if way == 0:
        model.opset_import[0].version = rng.choice([-1, 0, 1, 6, 9, 11, 99, 2**40])
    elif way == 1:
        del model.opset_import[:]
    else:
        model.ir_version = rng.choice([0, 1, 3, 99, 2**40])
    return {"opset", "IR", "ir_version", "opset_import"}


def flip_bytes(rng: random.Random, data: bytes) -> bytes:
    """Byte flips, cuts and insertions in the file itself; no culprit can be named."""
    content = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(len(content))
        way = rng.randrange(5)
        if way < 3:
            content[at] ^= 1 << rng.randrange(8)
        elif way == 3:
            del content[at : at + rng.randint(1, 9)]
        else:
            content[at:at] = rng.randbytes(rng.randint(1, 5))
        if not content:
            break
    return bytes(content)


MUTATIONS: tuple[Mutation, ...] = (
    drop_edge, rename_edge, swap_inputs, cyclic_edge, change_op, change_domain, change_attribute, odd_convolution,
    reshape_weight, change_weight_type, change_values, remove_weight, change_input, change_output, remove_node,
    move_node, change_opset,
)  # fmt: skip


def mutants(count: int, seed: int) -> list[Mutant]:
    """`count` broken models, the same for the same seed."""
    rng = random.Random(seed)
    models = {name: model.SerializeToString() for name, model in seeds().items()}
    found = []
    while len(found) < count:
        name = rng.choice(list(models))
        if rng.random() < 0.1:
            found.append(Mutant(flip_bytes(rng, models[name]), name, "flip_bytes", frozenset()))
            continue
        model = onnx.load_model_from_string(models[name])
        mutation = rng.choice(MUTATIONS)
        with contextlib.suppress(IndexError, ValueError):  # there is no such node, edge or weight to break
            touched = frozenset(mutation(rng, model))
            found.append(Mutant(model.SerializeToString(), name, mutation.__name__, touched))
    return found


def outcome(mutant: Mutant) -> Outcome:
    """Build a mutant and say how that ended."""
    end, message = "engine", ""
    try:
        engine = lab.build(mutant.data, time_limit=60, memory_limit=4)
        writes_nothing = any(0 in port.shape for port in engine.ports if port.mode == "Output")
        if not (engine.layers or writes_nothing) or not engine.plan.stat().st_size:
            end = "EMPTY ENGINE"
        else:
            engine.fate(mutant.data)
    except lab.BuildError as error:
        end, message = error.stage, error.message
        if not (message.endswith(".") and error.diagnosis.fix and "\n" not in message and len(message) < 600):
            end, message = "NO FIX OR TOO LONG", str(error)
    except Exception as error:
        end, message = "RAW EXCEPTION", f"{type(error).__name__}: {error}"
    return Outcome(mutant, end, message)


STAGES = ("model", "profile", "target", "parse", "build", "crash", "memory", "time")


@pytest.fixture(scope="module", params=[(50, 0), pytest.param((3000, 1), marks=pytest.mark.deep)], ids=["50", "3000"])
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    here, cache = tmp_path_factory.mktemp("cwd"), tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(3) as pool:
        patch.chdir(here)
        patch.setenv("TRTLAB_CACHE", str(cache))
        patch.setenv("TRTLAB_PROGRESS", "0")
        found = list(pool.map(outcome, mutants(*request.param)))
    assert not list(here.iterdir()), "the working folder was written to"
    assert not leftovers(cache)
    assert not compilers(), "a compiler process is still there"
    return found


def test_every_broken_model_ends_as_an_engine_or_a_build_error(outcomes: list[Outcome]) -> None:
    wrong = [found for found in outcomes if found.end not in ("engine", *STAGES)]
    assert not wrong, [(found.mutant.mutation, found.end, found.message) for found in wrong[:5]]
    ends = Counter(found.end for found in outcomes)
    print(ends)
    assert {"engine", "model", "parse"} <= set(ends), "the mutations reach both the checker and TensorRT"


def test_seven_in_ten_errors_name_what_was_broken(outcomes: list[Outcome]) -> None:
    """Of those in which something was broken that has a name: flipped bytes have none."""
    errors = [found for found in outcomes if found.end in STAGES and found.mutant.culprits]
    unnamed = [found.message for found in errors if not found.named]
    assert len(unnamed) <= 0.3 * len(errors), "\n".join(unnamed)
