"""Which Transposes undo each other, so that none of them has to run?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

Shapes = Mapping[str, Sequence[int | str | None]]


def axes_of(node: onnx.NodeProto, shapes: Shapes) -> list[int] | None:
    """The input axis that becomes each output axis of a Transpose; None where the number of axes is unknown."""
    given = [list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
    shape = shapes.get(node.input[0])
    return given[0] if given else None if shape is None else list(range(len(shape)))[::-1]


def keeps_order(axes: Sequence[int], shape: Sequence[int | str | None] | None) -> bool:
    """True when `axes` moves at most the axes of size 1, and with them no element."""
    moved = [axis for axis in axes if shape is None or shape[axis : axis + 1] != (1,)]
    return moved == sorted(moved)


def cancelled(
    nodes: Sequence[onnx.NodeProto],
    shapes: Shapes,
    readers: Mapping[str, Sequence[onnx.NodeProto]],
    is_same: Callable[[onnx.NodeProto], bool],
) -> set[str]:
    """The tensors between Transposes that undo each other, and what the last of them writes: the first one's input.

    `nodes` are in execution order, `readers` maps a tensor to the nodes that read it (a graph output also to one that
    is none of `nodes`), and `is_same` says of a node that its output is its input, shape and all.
    """
    origin: dict[str, tuple[str, list[int]]] = {}  # the tensor that the elements come from, and its axes' order here
    back: set[str] = set()
    chain = []
    for node in nodes:
        axes = axes_of(node, shapes) if node.op_type == "Transpose" else None
        if axes is None and not (node.input and node.input[0] in origin and is_same(node)):
            continue
        chain.append(node)
        source, before = origin.get(node.input[0], (node.input[0], list(range(len(axes or ())))))
        after = before if axes is None else [before[axis] for axis in axes]
        origin[node.output[0]] = source, after
        if keeps_order(after, shapes.get(source)):
            back.add(node.output[0])
    found = set(back)
    for node in reversed(chain):
        follow = readers.get(node.output[0], ())
        if follow and all(reader.output and reader.output[0] in found for reader in follow):
            found.add(node.output[0])
    return found
