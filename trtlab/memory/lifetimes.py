"""Which tensors are alive while a layer runs? A tensor is born at its first writer and dies after its last reader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from trtlab import tables
from trtlab.building import build
from trtlab.engine import Engine, Layer
from trtlab.errors import AssetError, ProfileError
from trtlab.gpus import Gpu
from trtlab.onnx_model import Model


@dataclass(frozen=True)
class Lifetime:
    """An intermediate tensor: its bytes, and the kernels (counted from 0) that first write and last use it."""

    name: str
    nbytes: int
    born: int
    last: int


@dataclass(frozen=True, repr=False)
class Liveness:
    """The life of every intermediate tensor of an engine, and which of them are alive while each kernel runs.

    `present` holds for each kernel the numbers of those tensors; where streams run side by side, at the moment at which
    they take most. Weights, inputs and outputs are apart: they have memory of their own. `reserved_bytes` is
    TensorRT's own figure for what a context reserves, None where it reported none.
    """

    kernels: tuple[Layer, ...]
    tensors: tuple[Lifetime, ...]
    present: tuple[tuple[int, ...], ...]
    reserved_bytes: int | None
    compiler: str = ""

    @property
    def alive(self) -> tuple[int, ...]:
        """Bytes alive while each kernel runs, in the order of `kernels`."""
        return tuple(sum(self.tensors[number].nbytes for number in numbers) for numbers in self.present)

    @property
    def sum_bytes(self) -> int:
        """Every intermediate tensor at a place of its own."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def peak_bytes(self) -> int:
        """The most bytes alive while one kernel runs: no allocator can do with less without working in place."""
        return max(self.alive, default=0)

    @property
    def peak(self) -> int:
        """The first kernel, counted from 0, at which the most bytes are alive."""
        return self.alive.index(self.peak_bytes) if self.alive else 0

    @property
    def streams(self) -> int:
        """How many streams the kernels run on."""
        return len({layer.stream for layer in self.kernels})

    def at(self, kernel: int) -> tuple[Lifetime, ...]:
        """The tensors alive while kernel number `kernel` (counted from 0) runs, the largest first."""
        found = (self.tensors[number] for number in self.present[kernel])
        return tuple(sorted(found, key=lambda tensor: -tensor.nbytes))

    def table(self) -> pd.DataFrame:
        """One row a tensor, the largest first: tensor, MiB, and the numbers of the kernels `born` and `last used`."""
        rows = [(one.name, one.nbytes / 2**20, one.born, one.last) for one in self.tensors]
        found = pd.DataFrame(rows, columns=["tensor", "MiB", "born", "last used"])
        return found.sort_values(["MiB", "born"], ascending=[False, True], ignore_index=True)

    def summary(self) -> dict[str, str]:
        """The three figures, {what: MiB}."""
        figures = {
            f"all {len(self.tensors)} intermediate tensors": self.sum_bytes,
            "most alive at once": self.peak_bytes,
            "TensorRT reserves": self.reserved_bytes,
        }
        return {what: "not reported" if size is None else f"{size / 2**20:,.1f} MiB" for what, size in figures.items()}

    def __repr__(self) -> str:
        return "Liveness(" + ", ".join(f"{what}: {size}" for what, size in self.summary().items()) + ")"

    def _repr_html_(self) -> str:
        return tables.facts(self.summary())


def liveness(
    given: Engine | Model, shapes: Mapping[str, Any] | None = None, gpu: str | float | Gpu | None = None
) -> Liveness:
    """The lifetimes of the tensors between the kernels of an engine, or of a model compiled for `shapes` and `gpu`.

    Sizes are logical, without padding. Raises ProfileError for an engine of several profiles or of a range, whose sizes
    are known only at run time, and what `build` raises.
    """
    engine = given if isinstance(given, Engine) else build(given, gpu, shapes)
    if not engine.kernels:
        raise AssetError(
            "This engine lists no layers, so nothing can be said about its tensors.",
            fix="build with ProfilingVerbosity.DETAILED, or use lab.build.",
        )
    layers = engine.layers
    if any(layer.profile for layer in layers):
        raise ProfileError(
            "This engine serves several profiles, each with tensors of its own.",
            fix="ask for one shape: lab.memory.liveness(model, shapes={…}).",
        )
    users = _users(engine)
    number = {place: index for index, place in enumerate(place for place, one in enumerate(layers) if one.is_kernel)}
    tensors = tuple(
        Lifetime(name, nbytes, number[min(writers)], number[max(writers | readers)])
        for name, (writers, readers, nbytes) in users.items()
    )
    present = _present(layers, [writers | readers for writers, readers, _ in users.values()], tensors)
    in_order = tuple(present.get(place, ()) for place in number)
    return Liveness(engine.kernels, tensors, in_order, engine.activation_bytes, engine.compiler)


def _users(engine: Engine) -> dict[str, tuple[set[int], set[int], int]]:
    """For each intermediate tensor the places of its writers and of its readers, and its bytes.

    A tensor that one kernel writes as 1024×768 and others read in pieces or under another shape is one tensor: the
    largest view counts.
    """
    ports = {port.name for port in engine.ports}
    users: dict[str, tuple[set[int], set[int], int]] = {}
    for place, layer in enumerate(engine.layers):
        for side, tensors in enumerate((layer.outputs, layer.inputs)) if layer.is_kernel else ():
            for tensor in tensors:
                if tensor.name in ports:
                    continue
                if tensor.nbytes is None:
                    raise _unknown(engine, layer, tensor.name)
                found = users.get(tensor.name, (set(), set(), 0))
                found[side].add(place)  # type: ignore[union-attr]
                users[tensor.name] = (found[0], found[1], max(found[2], tensor.nbytes))
    return {name: found for name, found in users.items() if found[0]}


def _unknown(engine: Engine, layer: Layer, tensor: str) -> ProfileError:
    wanted = {
        port.name: port.profiles[0][2] if port.profiles else tuple(abs(size) for size in port.shape)
        for port in engine.ports
        if port.mode == "Input" and -1 in port.shape
    }
    return ProfileError(
        f"The size of the tensor '{tensor}' at layer '{layer.name}' is known only at run time: the engine was built "
        "for a range of shapes.",
        fix=f"ask for one shape: lab.memory.liveness(model, shapes={wanted or '{…}'}).",
    )


def _present(
    layers: Sequence[Layer], users: list[set[int]], tensors: tuple[Lifetime, ...]
) -> dict[int, tuple[int, ...]]:
    """The numbers of the tensors alive while the layer at each place runs, at the moment when they take most."""
    found: dict[int, tuple[int, tuple[int, ...]]] = {}
    for running, ended in _moments(layers):
        alive = tuple(
            number
            for number, places in enumerate(users)
            if (places & running or places & ended) and not places <= ended
        )
        size = sum(tensors[number].nbytes for number in alive)
        for place in running:
            if place not in found or size > found[place][0]:
                found[place] = size, alive
    return {place: alive for place, (_, alive) in found.items()}


def _needs(layers: Sequence[Layer]) -> list[set[int]]:
    """For each layer the places that must have ended: those before it in its stream, and a `signal` that it waits for.

    The order that vector clocks give (Fidge 1988).
    """
    needs: list[set[int]] = []
    latest: dict[int, set[int]] = {}  # by stream: its last layer and all that this one needed
    signals: dict[int | None, set[int]] = {}
    for place, layer in enumerate(layers):
        mine = latest.get(layer.stream, set()) | (signals.get(layer.event, set()) if layer.type == "wait" else set())
        needs.append(mine)
        latest[layer.stream] = mine | {place}
        if layer.type == "signal":
            signals[layer.event] = latest[layer.stream]
    return needs


def _moments(layers: Sequence[Layer]) -> Iterable[tuple[set[int], set[int]]]:
    """Every moment that a GPU may come to: the places running, and those that have ended.

    With too many moments to go through (_MOST_MOMENTS), and with one stream, the layers run one by one in their order.
    """
    one_by_one = (({place}, set(range(place))) for place in range(len(layers)))
    if len({layer.stream for layer in layers}) < 2:
        return one_by_one
    needs, found = _needs(layers), []
    states = [frozenset[int]()]  # what has begun
    seen = set(states)
    for begun in states:
        if len(seen) > _MOST_MOMENTS:
            return one_by_one
        ended = set().union(*(needs[place] for place in begun))
        found.append((set(begun) - ended, ended))
        for place in range(len(layers)):
            following = begun | {place}
            if place not in begun and needs[place] <= begun and following not in seen:
                seen.add(following)
                states.append(following)
    return found


_MOST_MOMENTS = 5000
