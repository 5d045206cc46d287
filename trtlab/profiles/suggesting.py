"""Profiles for the shapes that really come: cut where it saves the most padding, as many as are worth their price."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pandas as pd

from trtlab import tables
from trtlab.errors import ProfileError
from trtlab.onnx_model import Model, read_model
from trtlab.profiles.checking import check
from trtlab.profiles.running import Trials
from trtlab.shapes import Findings, Profile, Shape, check_profiles, inputs_of, read_shapes

_MOST = 8  # profiles
_CUTS = 400  # places where a cut is considered
_EXAMPLE = 'write {"input_ids": [(1, 17), (1, 64), (2, 30)]}: one shape a request, dynamic where it varies.'


@dataclass(frozen=True)
class Option:
    """A number of profiles with the best cuts for it. `padding` is the share of work done on padding: 0.5 for half as
    much again as needed; `memory` the bytes alive at most in each profile at its max, in the ONNX graph, summed.
    """

    profiles: tuple[Profile, ...]
    padding: float
    memory: int
    cost: float


@dataclass(frozen=True)
class Suggestion:
    """The option with the lowest cost, beside the others; `price` says what cost is. Pass `.shapes` to build()."""

    options: tuple[Option, ...]
    chosen: Option
    observed: Observed
    findings: Findings
    price: str

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The profiles of the chosen option, the smallest shapes first."""
        return self.chosen.profiles

    @property
    def shapes(self) -> Profile | list[Profile]:
        """What build() takes."""
        return list(self.profiles) if len(self.profiles) > 1 else self.profiles[0]

    @property
    def table(self) -> pd.DataFrame:
        """A row a number of profiles: padding in %, memory in MiB, cost; the chosen one is marked."""
        rows = [(len(one.profiles), 100 * one.padding, one.memory / 2**20, one.cost, "←" * (one is self.chosen))
                for one in self.options]  # fmt: skip
        return pd.DataFrame(rows, columns=["profiles", "padding %", "memory MiB", "cost", ""]).set_index("profiles")

    def __repr__(self) -> str:
        return f"<Suggestion: {len(self.profiles)} profiles, {100 * self.chosen.padding:.0f}% padding>"

    def _repr_html_(self) -> str:
        table = self.table.round(2).reset_index().astype(object)
        options = tables.rows(list(table), table.to_numpy().tolist(), self.price)
        trouble = self.findings._repr_html_() if len(self.findings) else ""
        return options + tables.rows(("profile", "shapes"), list(enumerate(self.profiles))) + trouble


def suggest(
    model: Model,
    observed: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    count: int | None = None,
    multiple: int = 1,
    profile_cost: float = 0.05,
    gib_cost: float = 0.02,
) -> Suggestion:
    """Profiles for `observed` shapes: {input: one shape a request}, or a list of {input: shape}.

    A request is taken to be padded to the max of the cheapest profile that holds it (batched rows, CUDA graphs), its
    work to be the elements of its inputs. Requests in order of their work are cut into groups; where one dimension
    varies, the cuts of a given number are the best ones (dynamic programming; of more than 400 shapes, over 400
    places). `count` fixes that number; without it the cost chooses, up to 8. Max sizes but that of dimension 0 are
    rounded up to a `multiple`. opt is the median of what comes. Raises ProfileError for shapes that cannot be read;
    what the model cannot run is in `.findings`.
    """
    if count is not None and not 1 <= count <= _MOST:
        raise ProfileError(f"count is {count}.", fix=f"ask for 1 to {_MOST} profiles, or leave it out.")
    if multiple < 1:
        raise ProfileError(f"multiple is {multiple}.", fix="give a whole number from 1 on.")
    proto = read_model(model)
    seen, trials, options = _read(observed, proto, multiple), Trials(proto), []
    for edges in _best_cuts(seen):
        profiles = tuple(_profile(seen, low, high) for low, high in itertools.pairwise(edges))
        padding = _padding(seen, [seen.padded[low:high].max(axis=0) for low, high in itertools.pairwise(edges)])
        memory = sum(_alive_bytes(trials, {name: sizes[2] for name, sizes in one.items()}) for one in profiles)
        cost = padding + profile_cost * (len(profiles) - 1) + gib_cost * memory / 2**30
        options.append(Option(profiles, padding, memory, cost))
    wanted = [one for one in options if count in (None, len(one.profiles))] or options[-1:]
    chosen = min(wanted, key=lambda one: one.cost)
    price = f"cost = padding + {profile_cost:g} a further profile + {gib_cost:g} a GiB"
    return Suggestion(tuple(options), chosen, seen, check(proto, list(chosen.profiles)), price)


def _best_cuts(seen: Observed) -> list[list[int]]:
    """For 1, 2, … profiles the row numbers where the best groups begin, and the end; ends where no cut is left."""
    places = np.linspace(0, len(seen.rows), min(len(seen.rows), _CUTS) + 1).round().astype(int)
    price = np.full((len(places), len(places)), np.inf)  # price[a, b]: the work of a group from place a to place b
    before = np.concatenate([[0], np.cumsum(seen.weights)])
    for at, low in enumerate(places[:-1]):
        ends = places[at + 1 :]
        tops = np.maximum.accumulate(seen.padded[low:])[ends - low - 1]
        price[at, at + 1 :] = (before[ends] - before[low]) * seen.work(tops)
    best, cuts = price[0], [[0, end] for end in range(len(places))]
    found = [cuts[-1]]
    for _ in range(1, min(_MOST, len(places) - 1)):
        total = best[:, None] + price
        best, cuts = total.min(axis=0), [[*cuts[last], end] for end, last in enumerate(total.argmin(axis=0))]
        found.append(cuts[-1])
    return [[int(places[place]) for place in one] for one in found]


def _padding(seen: Observed, tops: list[np.ndarray]) -> float:
    """The share of work on top when each request goes to the cheapest profile that holds it."""
    holds = (seen.rows[:, None] <= np.stack(tops)).all(axis=2)
    done = np.where(holds, seen.work(np.stack(tops)), np.inf).min(axis=1)
    return float((seen.weights * done).sum() / (seen.weights * seen.work(seen.rows)).sum()) - 1


def _profile(seen: Observed, low: int, high: int) -> Profile:
    """min, median and (rounded) max of the requests in a group."""
    rows, varying = seen.rows[low:high], np.ptp(seen.rows, axis=0) > 0
    least, most = rows.min(axis=0), seen.padded[low:high].max(axis=0)
    if low and varying.sum() == 1:  # no gap to the profile before
        least = np.where(varying, np.minimum(least, seen.padded[:low].max(axis=0) + 1), least)
    opt = np.quantile(rows, 0.5, axis=0, weights=seen.weights[low:high], method="inverted_cdf")
    found: dict[str, list[tuple[int, ...]]] = {}
    for (name, _), *sizes in zip(seen.axes, least, opt, most, strict=True):
        found.setdefault(name, []).append(tuple(map(int, sizes)))
    return {name: tuple(zip(*columns, strict=True)) for name, columns in found.items()}  # type: ignore[misc]


def _alive_bytes(trials: Trials, sizes: Mapping[str, Shape]) -> int:
    """The bytes alive at most at once when the ONNX graph runs node by node at these sizes, weights left out."""
    tensors, nodes = trials.at(sizes)[1], trials.model.graph.node
    born = dict.fromkeys(trials.inputs, 0) | {value: at for at, node in enumerate(nodes) for value in node.output}
    last = {value: at for at, node in enumerate(nodes) for value in node.input}
    changes = np.zeros(len(nodes) + 1, dtype=int)
    for name in born.keys() & tensors.keys():
        changes[born[name]] += tensors[name].nbytes
        changes[last.get(name, len(nodes) - 1) + 1] -= tensors[name].nbytes
    return int(changes.cumsum().max())


@dataclass(frozen=True, eq=False)
class Observed:
    """A row for each distinct shape, the one with the least work first, and how often it came.

    `axes` says (input, axis) of a column; `padded` are the rows as a profile's max would round them up.
    """

    rows: np.ndarray
    padded: np.ndarray
    weights: np.ndarray
    axes: tuple[tuple[str, int], ...]

    def work(self, rows: np.ndarray) -> np.ndarray:
        """The elements of all inputs for each row."""
        first = [column for column, (_, axis) in enumerate(self.axes) if axis == 0]
        elements: np.ndarray = np.multiply.reduceat(rows, first, axis=1, dtype=float)
        return elements.sum(axis=1)


def _read(observed: Any, model: onnx.ModelProto, multiple: int) -> Observed:
    """`observed` as a table; raises ProfileError, naming the input, for what cannot be read or does not fit."""
    inputs = inputs_of(model)
    dynamic = [name for name, port in inputs.items() if port.dynamic]
    if not dynamic:
        fix = "export it with dynamic shapes, or build it as it is."
        raise ProfileError("The model has no dynamic dimension.", fix=fix)
    try:
        if isinstance(observed, Mapping):
            observed = [dict(zip(observed, row, strict=True)) for row in zip(*observed.values(), strict=True)]
        requests = read_shapes(observed)
        names = ", ".join(sorted({name for request in requests for name in request})) or "nothing"
        if not requests or not all(request.keys() >= {*dynamic} for request in requests):
            raise ProfileError(f"Each request must give a shape of {', '.join(dynamic)}; observed was {names}.")
        odd = [name for request in requests for name, (low, _, high) in request.items() if low != high or 0 in low]
        if odd:
            raise ProfileError(f"Input '{odd[0]}' was not given one shape a request, of sizes of at least 1.")
        counts = Counter(tuple(sorted(request.items())) for request in requests)
        check_profiles([dict(one) for one in counts], model)
    except ProfileError as error:
        raise ProfileError(error.message, fix=_EXAMPLE) from error
    except (TypeError, ValueError) as error:
        raise ProfileError(f"The inputs were not observed equally often: {error}.", fix=_EXAMPLE) from error
    axes = [(name, axis) for name in dynamic for axis in range(len(inputs[name].sizes))]
    rows = np.asarray([[dict(one)[name][2][axis] for name, axis in axes] for one in counts])
    steps = np.asarray([multiple if axis and isinstance(inputs[name].sizes[axis], str) else 1 for name, axis in axes])
    table = Observed(rows, -(-rows // steps) * steps, np.asarray([*counts.values()]), tuple(axes))
    order = np.lexsort((*rows.T[::-1], table.work(rows)))
    return Observed(rows[order], table.padded[order], table.weights[order], table.axes)
