"""PyTorch to ONNX: quiet, with dynamic sizes and readable node names, the same bytes on every run and every machine."""

from __future__ import annotations

import ast
import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import optimizer
from torch import nn

Shape = tuple[int | str, ...]

_HIDDEN = {
    "torch.onnx._internal.exporter._registration": "torchvision is not installed",
    "onnx_ir.passes.common.initializer_deduplication": "as it is a graph input or output",
}


def export(
    module: nn.Module,
    sample: dict[str, np.ndarray],
    inputs: dict[str, Shape],
    outputs: tuple[str, ...],
    *,
    fold_batch_norm: bool = True,
) -> onnx.ModelProto:
    """The module as a checked ONNX model; a size given as text ("N") stays dynamic, and sample has at least 2 of each.

    With `fold_batch_norm` PyTorch's exporter multiplies batch norm into the convolution before it; without, every
    BatchNormalization stays a node of its own.
    """
    dynamic = tuple(
        {axis: size for axis, size in enumerate(shape) if isinstance(size, str)} for shape in inputs.values()
    )
    with hide_known_noise(), torch.inference_mode():
        program = torch.onnx.export(
            module,
            tuple(torch.from_numpy(sample[name]) for name in inputs),
            dynamo=True,
            external_data=False,
            optimize=False,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dynamic,
            verbose=False,
        )
        assert program is not None
        _optimize(program.model, fold_batch_norm)
        model = program.model_proto
    _rename(model.graph)
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    return model


@contextlib.contextmanager
def hide_known_noise() -> Iterator[None]:
    """Hide what concerns no reader: no torchvision, pytree will change, what _optimize does on purpose."""

    def concerns_reader(record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in _HIDDEN.values())

    loggers = [logging.getLogger(name) for name in _HIDDEN]
    for logger in loggers:
        logger.addFilter(concerns_reader)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(concerns_reader)


def _optimize(model: Any, fold_batch_norm: bool) -> None:
    """What torch.onnx.export(optimize=True) does, with or without its batch-norm rules."""
    # Those rules leave alone what is a graph input, so without folding the scales are one while the optimizer runs.
    norms = [] if fold_batch_norm else [node for node in model.graph if node.op_type == "BatchNormalization"]
    scales = list(dict.fromkeys(node.inputs[1] for node in norms))
    model.graph.inputs.extend(scales)
    optimizer.optimize(model)
    for scale in scales:
        model.graph.inputs.remove(scale)


def _rename(graph: onnx.GraphProto) -> None:
    """Name every node `<module>/<operation>`, and its output and unnamed constants after it."""
    initializers = {tensor.name for tensor in graph.initializer}
    kept = {value.name for value in (*graph.input, *graph.output)}
    module_of: dict[str, str] = {}
    names: dict[str, str] = {}
    taken: dict[str, int] = {}
    for node in graph.node:
        module = _module(node, initializers, module_of)
        name = f"{module}/{node.op_type}" if module else node.op_type
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name] - 1}"
        for index, value in enumerate(node.output):
            module_of[value] = module
            if value not in kept:
                names[value] = f"{node.name}.{index}" if index else node.name
        for index, value in enumerate(node.input):
            if value in initializers and value.startswith("val_"):
                names.setdefault(value, f"{node.name}.input{index}")
    _apply(graph, names)


def _module(node: onnx.NodeProto, initializers: set[str], module_of: dict[str, str]) -> str:
    """The dotted path of the module a node came from: by its weight, by PyTorch's record, or by what it reads."""
    for value in node.input:
        if value in initializers and value.endswith(".weight"):
            return _tidy(value.removesuffix(".weight"))
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
    path = ast.literal_eval(scopes)
    if len(path) > 1 and not path[0].startswith("_empty"):
        return _tidy(path[-2])
    return next((module_of[value] for value in node.input if value in module_of), "")


def _tidy(path: str) -> str:
    return ".".join(part.lstrip("_") for part in path.split("."))


def _apply(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(value, value) for value in node.input]
        node.output[:] = [names.get(value, value) for value in node.output]
    for named in (*graph.initializer, *graph.value_info):
        named.name = names.get(named.name, named.name)


def _strip(model: onnx.ModelProto) -> None:
    """Remove stack traces and notes: they hold this machine's paths."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
