"""Which tensors are alive while a layer runs? A tensor is born at its first writer and dies after its last reader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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

    def at(self, kernel: int) -> tuple[Lifetime, ...]:
        """The tensors alive while kernel number `kernel` (counted from 0) runs, the largest first."""
        found = (self.tensors[number] for number in self.present[kernel])
        return tuple(sorted(found, key=lambda tensor: -tensor.nbytes))

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
        fix = "build with ProfilingVerbosity.DETAILED, or use lab.build."
        raise AssetError("This engine lists no layers, so nothing can be said about its tensors.", fix=fix)
    layers = engine.layers
    if any(layer.profile for layer in layers):
        fix = "ask for one shape: lab.memory.liveness(model, shapes={…})."
        raise ProfileError("This engine serves several profiles, each with tensors of its own.", fix=fix)
    users, sizes = _users(engine, layers)
    number = {place: index for index, place in enumerate(place for place, one in enumerate(layers) if one.is_kernel)}
    tensors = tuple(
        Lifetime(name, sizes[name], number[min(writers)], number[max(writers + readers)])
        for name, (writers, readers) in users.items()
    )
    present = _present(Schedule(layers), [writers + readers for writers, readers in users.values()], tensors)
    in_order = tuple(present.get(place, ()) for place in number)
    return Liveness(engine.kernels, tensors, in_order, engine.activation_bytes)


def _present(schedule: Schedule, users: list[list[int]], tensors: tuple[Lifetime, ...]) -> dict[int, tuple[int, ...]]:
    """The numbers of the tensors alive while the layer at each place runs, at the moment when they take most."""
    found: dict[int, tuple[int, tuple[int, ...]]] = {}
    for running, ended in schedule.moments():
        alive = tuple(
            number
            for number, places in enumerate(users)
            if not ended.issuperset(places) and not (running | ended).isdisjoint(places)
        )
        size = sum(tensors[number].nbytes for number in alive)
        for place in running:
            if place not in found or size > found[place][0]:
                found[place] = size, alive
    return {place: alive for place, (_, alive) in found.items()}


def _users(engine: Engine, layers: tuple[Layer, ...]) -> tuple[dict[str, tuple[list[int], list[int]]], dict[str, int]]:
    """The places of the writers and the readers of each intermediate tensor, and its bytes.

    A tensor that one kernel writes as 1024×768 and others read in pieces or under another shape is one tensor: the
    largest view counts.
    """
    ports = {port.name for port in engine.ports}
    users: dict[str, tuple[list[int], list[int]]] = {}
    sizes: dict[str, int] = {}
    for place, layer in enumerate(layers):
        for side, tensors in enumerate((layer.outputs, layer.inputs) if layer.is_kernel else ()):
            for tensor in tensors:
                if tensor.name not in ports:
                    if tensor.nbytes is None:
                        raise _unknown(engine, layer, tensor.name)
                    users.setdefault(tensor.name, ([], []))[side].append(place)
                    sizes[tensor.name] = max(sizes.get(tensor.name, 0), tensor.nbytes)
    return {name: found for name, found in users.items() if found[0]}, sizes


def _unknown(engine: Engine, layer: Layer, tensor: str) -> ProfileError:
    wanted = {
        port.name: port.profiles[0][2] if port.profiles else tuple(abs(size) for size in port.shape)
        for port in engine.ports
        if port.mode == "Input" and -1 in port.shape
    }
    where = f"The size of the tensor '{tensor}' at layer '{layer.name}' is known only at run time"
    fix = f"ask for one shape: lab.memory.liveness(model, shapes={wanted or '{…}'})."
    return ProfileError(f"{where}: the engine was built for a range of shapes.", fix=fix)


_MOST_MOMENTS = 5000  # with many independent streams there are too many to look at all


class Schedule:
    """The order in which a GPU must run layers: one after the other in a stream, and a `wait` after its `signal`.

    `needs[place]` are the places of all layers that must have ended before the one at `place` begins.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.lanes: dict[int, list[int]] = {}
        self.needs: list[set[int]] = []
        signals: dict[int | None, int] = {}
        for place, layer in enumerate(layers):
            lane = self.lanes.setdefault(layer.stream, [])
            before = lane[-1:] + ([signals[layer.event]] if layer.type == "wait" and layer.event in signals else [])
            self.needs.append(set(before).union(*(self.needs[one] for one in before)))
            lane.append(place)
            if layer.type == "signal":
                signals[layer.event] = place

    def moments(self) -> Iterator[tuple[set[int], set[int]]]:
        """Every moment that a GPU may come to: the places of the layers that run, and of those that have ended.

        Breadth first over how many layers of each stream have begun; with too many moments to go through, those of
        running the layers one by one in their order.
        """
        lanes, found = list(self.lanes.values()), []
        states = {(0,) * len(lanes): None}  # in order, each once
        todo = list(states)
        for state in todo:  # which grows
            last = {lane[count - 1] for lane, count in zip(lanes, state, strict=True) if count}
            ended = set[int]().union(*(self.needs[place] for place in last))
            found.append((last - ended, ended))
            for index, (lane, count) in enumerate(zip(lanes, state, strict=True)):
                following = (*state[:index], count + 1, *state[index + 1 :])
                if count < len(lane) and self.needs[lane[count]] <= last | ended and following not in states:
                    states[following] = None
                    todo.append(following)
            if len(todo) > _MOST_MOMENTS:
                return iter([({place}, set(range(place))) for place in range(len(self.needs))])
        return iter(found)
