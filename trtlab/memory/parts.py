"""What takes the memory of a GPU when an engine runs: its parts, and the tensors that are alive at the same time.

A tensor is born at its first writer and dies after its last reader.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from trtlab.engine import Engine, Layer, Tensor
from trtlab.errors import AssetError, ProfileError
from trtlab.tables import mib

_MOST_MOMENTS = 5000


def breakdown(engine: Engine) -> pd.DataFrame:
    """One row a part: weights, activations, scratch, inputs, outputs, host; `bytes` is None where only a GPU knows.

    Activations are the most bytes alive at once; scratch is what TensorRT reserves beyond them. An engine for a range
    of shapes has both in one row; all sizes are those of its largest profile.
    """
    if not isinstance(engine, Engine):
        raise AssetError(
            f"breakdown() takes an Engine, not {type(engine).__name__}; a plan file tells its parts only to a GPU.",
            fix="lab.build(model) makes an Engine, lab.read_inspector(text) reads one.",
        )
    found = re.search(r"Total Host Persistent Memory: (\d+) bytes", engine.log)
    host = int(found[1]) if found else None
    rows = [
        ("weights", engine.weight_bytes, "one copy an engine", "TensorRT's log: Total Weights Memory"),
        *_context(engine),
        ("inputs", _io_bytes(engine, "Input"), "your buffers", "shapes and types of the engine's inputs"),
        ("outputs", _io_bytes(engine, "Output"), "your buffers", "shapes and types of the engine's outputs"),
        ("host", host, "one copy a context, in host memory", "TensorRT's log: Host Persistent"),
        ("CUDA context, kernels", None, "one a process", "needs a GPU: cudaMemGetInfo before and after"),
    ]
    table = pd.DataFrame(rows, columns=["part", "bytes", "held", "how we know"], dtype=object)
    table.insert(2, "MiB", [None if size is None else round(size / 2**20, 2) for size in table["bytes"]])
    return table.set_index("part")


def _io_bytes(engine: Engine, mode: str) -> int | None:
    """Bytes of all inputs (`mode` "Input") or outputs ("Output") of the largest profile; None when one is unknown."""
    if mode == "Output" and any(len(port.profiles) > 1 for port in engine.ports):
        return None  # TensorRT tells their shape for the first profile only
    sizes = []
    for port in (port for port in engine.ports if port.mode == mode):
        shape = max((profile[2] for profile in port.profiles), key=math.prod, default=port.shape)
        sizes.append(Tensor(port.name, shape, port.dtype).nbytes)
    return sum(filter(None, sizes)) if sizes and None not in sizes else None


def _context(engine: Engine) -> list[tuple[str, int | None, str, str]]:
    """The memory of one execution context: activations, and what is reserved beyond them."""
    reserved, held, log = engine.activation_bytes, "one copy a context", "TensorRT's log: Total Activation Memory"
    try:
        alive = liveness(engine).peak_bytes
    except ProfileError:
        return [("activations and scratch", reserved, held, log + ", at the largest shape")]
    beyond = None if reserved is None else reserved - alive
    return [
        ("activations", alive, held, "the most alive at once, from the list of layers"),
        ("scratch and gaps", beyond, held, log + ", less the activations"),
    ]


@dataclass(frozen=True)
class Lifetime:
    """An intermediate tensor: its bytes, and the kernels (counted from 0) that write or read it."""

    name: str
    nbytes: int
    users: frozenset[int]

    @property
    def born(self) -> int:
        """The kernel that first writes it."""
        return min(self.users)

    @property
    def last(self) -> int:
        """The kernel that uses it last."""
        return max(self.users)


@dataclass(frozen=True, repr=False)
class Liveness:
    """The life of every intermediate tensor of an engine, and which of them are alive while each kernel runs.

    `present` holds these for each kernel; where streams run side by side, at the moment at which they take most.
    Weights, inputs and outputs are apart: they have memory of their own. `reserved_bytes` is TensorRT's own figure for
    what a context reserves, None where it reported none.
    """

    kernels: tuple[Layer, ...]
    tensors: tuple[Lifetime, ...]
    present: tuple[tuple[Lifetime, ...], ...]
    reserved_bytes: int | None

    @property
    def alive(self) -> tuple[int, ...]:
        """Bytes alive while each kernel runs, in the order of `kernels`."""
        return tuple(map(_total, self.present))

    @property
    def sum_bytes(self) -> int:
        """Every intermediate tensor at a place of its own."""
        return _total(self.tensors)

    @property
    def peak_bytes(self) -> int:
        """The most bytes alive while one kernel runs: no allocator can do with less without working in place."""
        return max(self.alive)

    @property
    def peak(self) -> int:
        """The first kernel, counted from 0, at which the most bytes are alive."""
        return self.alive.index(self.peak_bytes)

    def __repr__(self) -> str:
        return (
            f"Liveness(all {len(self.tensors)} intermediate tensors: {mib(self.sum_bytes)}, "
            f"most alive at once: {mib(self.peak_bytes)}, TensorRT reserves: {mib(self.reserved_bytes)})"
        )


def liveness(engine: Engine) -> Liveness:
    """The lifetimes of the tensors between the kernels of an engine. Sizes are logical, without padding.

    Raises ProfileError for an engine of several profiles or of a range, whose sizes are known only at run time, and
    AssetError for one that lists no layers.
    """
    if not engine.kernels:
        raise AssetError(
            "This engine lists no layers, so nothing can be said about its tensors.",
            fix="build with ProfilingVerbosity.DETAILED, or use lab.build.",
        )
    if any(layer.profile for layer in engine.layers):
        raise ProfileError(
            "This engine serves several profiles, each with tensors of its own.",
            fix="build for one shape: lab.build(model, shapes={…}).",
        )
    tensors = _lifetimes(engine)
    present: list[tuple[Lifetime, ...]] = [()] * len(engine.kernels)
    for begun, ended in _moments(_needs(engine.layers)).items():
        alive = tuple(one for one in tensors if one.users & begun and not one.users <= ended)
        for kernel in begun - ended:
            present[kernel] = max(present[kernel], alive, key=_total)
    return Liveness(engine.kernels, tensors, tuple(present), engine.activation_bytes)


def _total(tensors: Sequence[Lifetime]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _lifetimes(engine: Engine) -> tuple[Lifetime, ...]:
    """Each intermediate tensor, in the order of birth.

    A tensor that one kernel writes as 1024×768 and others read in pieces or under another shape is one tensor: the
    largest view counts.
    """
    ports = {port.name for port in engine.ports}
    written = {tensor.name: None for kernel in engine.kernels for tensor in kernel.outputs if tensor.name not in ports}
    sizes, users = dict.fromkeys(written, 0), {name: set[int]() for name in written}
    for number, kernel in enumerate(engine.kernels):
        for tensor in (*kernel.outputs, *kernel.inputs):
            if tensor.name not in written:
                continue
            if tensor.nbytes is None:
                largest = {port.name: port.profiles[0][2] for port in engine.ports if port.profiles}
                raise ProfileError(
                    f"The size of the tensor '{tensor.name}' at layer '{kernel.name}' is known only at run time: the "
                    "engine was built for a range of shapes.",
                    fix=f"build for one shape: lab.build(model, shapes={largest or '{…}'}).",
                )
            sizes[tensor.name] = max(sizes[tensor.name], tensor.nbytes)
            users[tensor.name].add(number)
    return tuple(Lifetime(name, sizes[name], frozenset(users[name])) for name in written)


def _needs(layers: Sequence[Layer]) -> list[frozenset[int]]:
    """For each kernel those that must have ended: before it in its stream, or before a `signal` that this waits for.

    The order that vector clocks give (Fidge 1988).
    """
    needs: list[frozenset[int]] = []
    streams, signals = defaultdict[int, frozenset[int]](frozenset), defaultdict[int | None, frozenset[int]](frozenset)
    for layer in layers:
        if layer.type == "wait":
            streams[layer.stream] |= signals[layer.event]
        elif layer.type == "signal":
            signals[layer.event] = streams[layer.stream]
        elif layer.is_kernel:
            needs.append(streams[layer.stream])
            streams[layer.stream] |= {len(needs) - 1}
    return needs


def _moments(needs: Sequence[frozenset[int]]) -> dict[frozenset[int], frozenset[int]]:
    """Every moment that a GPU may come to: {the kernels that have begun: those of them that have ended}.

    With more than _MOST_MOMENTS to go through, those in which the kernels run one by one in their order.
    """
    start = frozenset[int]()
    moments, todo = {start: start}, [start]
    for begun in todo:
        if len(todo) > _MOST_MOMENTS:
            return {frozenset(range(count + 1)): frozenset(range(count)) for count in range(len(needs))}
        for kernel, before in enumerate(needs):
            if kernel not in begun and before <= begun:
                following = begun | {kernel}
                if following not in moments:
                    moments[following] = moments[begun] | before
                    todo.append(following)
    return moments
