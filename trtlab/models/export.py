"""PyTorch to ONNX: quiet, with dynamic sizes and readable node names, the same bytes on every run and every machine."""

from __future__ import annotations

import ast
import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import nn

Shape = tuple[int | str, ...]

# They warn of what concerns no reader: no torchvision, and what _optimize does on purpose.
_NOISY = ("torch.onnx._internal.exporter._registration", "onnx_ir.passes.common.initializer_deduplication")


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
    dynamic = tuple({axis: s for axis, s in enumerate(shape) if isinstance(s, str)} for shape in inputs.values())
    arguments = tuple(torch.from_numpy(sample[name]) for name in inputs)
    with hide_known_noise(), torch.inference_mode():
        program = torch.onnx.export(
            module, arguments, dynamo=True, external_data=False, optimize=False, verbose=False,
            input_names=list(inputs), output_names=list(outputs), dynamic_shapes=dynamic,
        )  # fmt: skip
        assert program is not None
        _optimize(program.model, fold_batch_norm)
        _name(program.model.graph)
        model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    return model


@contextlib.contextmanager
def hide_known_noise(*loggers: str) -> Iterator[None]:
    """Hide the warnings of an export that concern no reader, and those of `loggers`, in the block."""
    with contextlib.ExitStack() as after, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        for logger in map(logging.getLogger, (*_NOISY, *loggers)):
            after.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        yield


def _optimize(model: ir.Model, fold_batch_norm: bool) -> None:
    """What torch.onnx.export(optimize=True) does, with or without its batch-norm rules."""
    # Those rules leave alone what is a graph input, so without folding the scales are one while the optimizer runs.
    norms = [] if fold_batch_norm else [node for node in model.graph if node.op_type == "BatchNormalization"]
    scales = list(dict.fromkeys(scale for node in norms if (scale := node.inputs[1]) is not None))
    model.graph.inputs.extend(scales)
    optimizer.optimize(model)
    for scale in scales:
        model.graph.inputs.remove(scale)


def _name(graph: ir.Graph) -> None:
    """Name every node `<module>/<operation>`, and its output and unnamed constants after it."""
    module_of: dict[ir.Value, str] = {}
    taken: Counter[str] = Counter()
    for node in graph:
        module = _module(node, module_of)
        name = f"{module}/{node.op_type}" if module else node.op_type
        node.name = f"{name}_{taken[name]}" if taken[name] else name
        taken[name] += 1
        for index, value in enumerate(node.outputs):
            module_of[value] = module
            if not value.is_graph_output():
                value.name = f"{node.name}.{index}" if index else node.name
        for index, read in enumerate(node.inputs):
            if read is not None and read.is_initializer() and str(read.name).startswith("val_"):
                read.name = f"{node.name}.input{index}"


def _module(node: ir.Node, module_of: dict[ir.Value, str]) -> str:
    """The dotted path of the module a node came from: by its weight, by PyTorch's record, or by what it reads."""
    read = [value for value in node.inputs if value is not None]
    weights = (value.name for value in read if value.is_initializer() and value.name and value.name.endswith(".weight"))
    path = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    inside = len(path) > 1 and not path[0].startswith("_empty")
    found = next(weights, path[-2] if inside else None)
    if found is None:
        return next((module_of[value] for value in read if value in module_of), "")
    return ".".join(part.lstrip("_") for part in found.removesuffix(".weight").split("."))


def _strip(model: onnx.ModelProto) -> None:
    """Remove stack traces and notes: they hold this machine's paths."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
