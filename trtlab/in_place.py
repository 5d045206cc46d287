"""Which Concat nodes copy nothing, because kernels write their results where the concatenation belongs?"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from trtlab.engine import Engine, Tensor

if TYPE_CHECKING:
    import onnx

# What the compiler adds to the name of an ONNX tensor inside an engine, such as `d_U3.1_myl0` for `d`.
_SUFFIX = r"(?:_U\d+)?(?:\.\d+)?(?:_\d+)?_myl\d+"


def concats_in_place(engine: Engine, graph: onnx.GraphProto) -> set[str]:
    """The first outputs of the Concat nodes that `engine` has no work for, by the evidence of its own tensors.

    Several kernels write a tensor of the Concat's name, and their parts add up to the whole that is read; or the Concat
    feeds only others of that kind. Where sizes are dynamic, only the names are compared.
    """
    written = _shared(engine)
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {value.name for value in graph.output}
    found: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type != "Concat":
            continue
        name = node.output[0]
        joined = name not in outputs and readers[name] and all(found & set(one.output) for one in readers[name])
        if joined or any(re.fullmatch(re.escape(name) + f"(?:{_SUFFIX})?", tensor) for tensor in written):
            found.add(name)
    return found


def _shared(engine: Engine) -> set[str]:
    """The names of the tensors that several kernels write, each a part of what is read."""
    parts: dict[str, list[Tensor]] = defaultdict(list)
    whole = {port.name: Tensor(port.name, port.shape, port.dtype).nbytes for port in engine.ports}
    for layer in engine.kernels:
        for tensor in layer.outputs:
            parts[tensor.name].append(tensor)
        for tensor in layer.inputs:  # a part may be read before the rest is written
            whole[tensor.name] = max((whole.get(tensor.name), tensor.nbytes), key=lambda size: size or 0)
    return {name for name, tensors in parts.items() if len(tensors) > 1 and _adds_up(tensors, whole.get(name))}


def _adds_up(parts: list[Tensor], whole: int | None) -> bool:
    sizes = [part.nbytes for part in parts]
    known = [size for size in sizes if size is not None]
    return whole is None or len(known) < len(sizes) or sum(known) == whole
