"""Profiles for the shapes that really come: cut where it saves the most padding, as many as are worth their price."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from trtlab.errors import ProfileError
from trtlab.onnx_model import Model
from trtlab.profiles.checking import check, read_unhashed
from trtlab.profiles.running import Trials
from trtlab.shapes import Findings, Input, Profile, Shape, inputs_of, shape_text

_MOST = 8  # profiles
_CUTS = 400  # places where a cut is considered


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
    """The option with the lowest cost, beside the others; pass `.shapes` to build().

    `cost` is the padding plus `profile_cost` for every profile after the first plus `gib_cost` for every GiB.
    """

    options: tuple[Option, ...]
    chosen: Option
    observed: Observed
    findings: Findings
    profile_cost: float
    gib_cost: float

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The profiles of the chosen option, the smallest shapes first."""
        return self.chosen.profiles

    @property
    def shapes(self) -> Profile | list[Profile]:
        """What build() takes."""
        return list(self.profiles) if len(self.profiles) > 1 else self.profiles[0]

    @property
    def padding(self) -> float:
        """The work done on padding as a share of the work needed."""
        return self.chosen.padding

    @property
    def table(self) -> pd.DataFrame:
        """A row a number of profiles: padding in %, memory in MiB, cost; the chosen one is marked."""
        rows = [(len(one.profiles), 100 * one.padding, one.memory / 2**20, one.cost, "←" * (one is self.chosen))
                for one in self.options]  # fmt: skip
        return pd.DataFrame(rows, columns=["profiles", "padding %", "memory MiB", "cost", ""]).set_index("profiles")

    def __repr__(self) -> str:
        return f"<Suggestion: {len(self.profiles)} profiles, {100 * self.padding:.0f}% padding>"

    def _repr_html_(self) -> str:
        price = f"cost = padding + {self.profile_cost:g} a further profile + {self.gib_cost:g} a GiB"
        shapes = "".join(f"<li><code>{profile}</code></li>" for profile in self.profiles)
        trouble = self.findings._repr_html_() if len(self.findings) else ""
        return f"{self.table.round(2).to_html()}<p>{price}</p><ol start='0'>{shapes}</ol>{trouble}"


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
    proto = read_unhashed(model)
    inputs = inputs_of(proto)
    seen = read_observed(observed, inputs)
    trials = Trials(proto, inputs)
    options = []
    for edges in _best_cuts(seen, multiple):
        profiles = tuple(_profile(seen, low, high, multiple) for low, high in itertools.pairwise(edges))
        padding = _padding(seen, edges, multiple)
        memory = sum(alive_bytes(trials, {name: sizes[2] for name, sizes in one.items()}) for one in profiles)
        cost = padding + profile_cost * (len(profiles) - 1) + gib_cost * memory / 2**30
        options.append(Option(profiles, padding, memory, cost))
    wanted = [one for one in options if count in (None, len(one.profiles))] or options[-1:]
    chosen = min(wanted, key=lambda one: one.cost)
    return Suggestion(tuple(options), chosen, seen, check(proto, list(chosen.profiles)), profile_cost, gib_cost)


def _best_cuts(seen: Observed, multiple: int) -> list[list[int]]:
    """For 1, 2, … profiles the row numbers where the best groups begin, and the end; ends where no cut is left."""
    places = _places(seen)
    price = np.full((len(places), len(places)), np.inf)  # price[a, b]: the work of a group from place a to place b
    before = np.concatenate([[0], np.cumsum(seen.weights)])
    for at, low in enumerate(places[:-1]):
        ends = np.asarray(places[at + 1 :])
        tops = np.maximum.accumulate(seen.rows[low:], axis=0)[ends - low - 1]
        price[at, at + 1 :] = (before[ends] - before[low]) * seen.work(_rounded(seen, tops, multiple))
    best, cuts = price[0], [[0, end] for end in range(len(places))]
    found = [cuts[-1]]
    for _ in range(1, min(_MOST, len(places) - 1)):
        total = best[:, None] + price
        choice = total.argmin(axis=0)
        best, cuts = total.min(axis=0), [[*cuts[last], end] for end, last in enumerate(choice)]
        found.append(cuts[-1])
    return [[places[place] for place in one] for one in found]


def _places(seen: Observed) -> list[int]:
    """Where a cut is considered: between all shapes, or at quantiles of requests and of work where these are many."""
    total = len(seen.rows)
    if total < _CUTS:
        return list(range(total + 1))
    work = np.cumsum(seen.weights * seen.work(seen.rows))
    marks = np.linspace(0, 1, _CUTS // 2)
    inner = {int(at) for share in (seen.shares, work / work[-1]) for at in np.searchsorted(share, marks)}
    return sorted({0, total, *inner})


def _rounded(seen: Observed, sizes: np.ndarray, multiple: int) -> np.ndarray:
    """Sizes of the dynamic dimensions, rounded up where they are not a batch's."""
    step = np.asarray([1 if axis == 0 else multiple for _, axis in seen.axes])
    return -(-sizes // step) * step


def _top(seen: Observed, low: int, high: int, multiple: int) -> np.ndarray:
    """The max of a group of rows."""
    return _rounded(seen, seen.rows[low:high].max(axis=0), multiple)


def _padding(seen: Observed, edges: Sequence[int], multiple: int) -> float:
    """The share of work on top when each request goes to the cheapest profile that holds it."""
    tops = np.stack([_top(seen, low, high, multiple) for low, high in itertools.pairwise(edges)])
    holds = (seen.rows[:, None, :] <= tops[None]).all(axis=2)
    done = np.where(holds, seen.work(tops)[None], np.inf).min(axis=1)
    return float((seen.weights * done).sum() / (seen.weights * seen.work(seen.rows)).sum()) - 1


def _profile(seen: Observed, low: int, high: int, multiple: int) -> Profile:
    """min, median and (rounded) max of the requests in a group."""
    rows, weights = seen.rows[low:high], seen.weights[low:high]
    top = _top(seen, low, high, multiple)
    median = np.quantile(rows, 0.5, axis=0, weights=weights, method="inverted_cdf")
    low_sizes = rows.min(axis=0)
    varying = [column for column in range(len(top)) if len(np.unique(seen.rows[:, column])) > 1]
    if low and len(varying) == 1:  # no gap to the profile before
        low_sizes[varying[0]] = min(low_sizes[varying[0]], _top(seen, 0, low, multiple)[varying[0]] + 1)
    least, opt, most = (seen.shapes(sizes) for sizes in (low_sizes, median, top))
    return {name: (least[name], opt[name], most[name]) for name in opt}


def alive_bytes(trials: Trials, sizes: Mapping[str, Shape]) -> int:
    """The bytes alive at most at once when the ONNX graph runs node by node at these sizes, weights left out."""
    weights = {tensor.name for tensor in trials.model.graph.initializer}
    known = {name: one.nbytes for name, one in trials.tensors(sizes).items() if name not in weights}
    nodes = trials.model.graph.node
    last = {value: at for at, node in enumerate(nodes) for value in node.input}
    alive = most = sum(size for name, size in known.items() if name in trials.inputs)
    for at, node in enumerate(nodes):
        alive += sum(known.get(value, 0) for value in node.output)
        most = max(most, alive)
        alive -= sum(known.get(value, 0) for value in {*node.input} if last[value] == at)
    return most


_OPEN = "export the model with this dimension dynamic."
_EXAMPLE = 'write {"input_ids": [(1, 17), (1, 64), (2, 30)]}: one shape a request.'


@dataclass(frozen=True, eq=False)
class Observed:
    """`rows` (distinct shapes, dynamic dimensions) with how often each came; `axes` says (input, axis) of a column."""

    rows: np.ndarray
    weights: np.ndarray
    axes: tuple[tuple[str, int], ...]
    fixed: dict[str, tuple[int | None, ...]]

    @property
    def requests(self) -> int:
        """How many shapes were observed."""
        return int(self.weights.sum())

    @property
    def shares(self) -> np.ndarray:
        """The share of all requests up to and with each row."""
        return np.cumsum(self.weights) / self.weights.sum()

    def shapes(self, sizes: np.ndarray) -> dict[str, Shape]:
        """The shape of every input for a row of sizes."""
        found = {name: list(dims) for name, dims in self.fixed.items()}
        for (name, axis), size in zip(self.axes, sizes, strict=True):
            found[name][axis] = int(size)
        return {name: tuple(size or 0 for size in dims) for name, dims in found.items()}

    def work(self, rows: np.ndarray) -> np.ndarray:
        """The elements of all inputs for each row."""
        total = np.zeros(len(rows))
        for name, dims in self.fixed.items():
            part = np.full(len(rows), float(np.prod([size for size in dims if size is not None])))
            for column, (other, _) in enumerate(self.axes):
                part *= rows[:, column] if other == name else 1
            total += part
        return total


def read_observed(observed: Mapping[str, Any] | Sequence[Mapping[str, Any]], inputs: Mapping[str, Input]) -> Observed:
    """`observed` as a table; raises ProfileError, naming the input, for what cannot be read or does not fit."""
    columns = _columns(observed)
    dynamic = {name: port for name, port in inputs.items() if port.dynamic}
    if not dynamic:
        fix = "export it with dynamic shapes, or build it as it is."
        raise ProfileError("The model has no dynamic dimension.", fix=fix)
    if dynamic.keys() - columns.keys() or columns.keys() - inputs.keys():
        seen = f"The observed shapes are of {', '.join(sorted(columns)) or 'no input'}"
        raise ProfileError(f"{seen}; the model needs those of {', '.join(dynamic)}.", fix=_EXAMPLE)
    tables = {name: _table(columns[name], port) for name, port in dynamic.items()}
    if len({len(table) for table in tables.values()}) != 1:
        raise ProfileError("The inputs were not observed equally often.", fix="give one shape of each input a request.")
    fixed = {name: (None,) * port.length if port.holds_sizes else port.dims for name, port in dynamic.items()}
    axes = tuple((name, axis) for name, dims in fixed.items() for axis, size in enumerate(dims) if size is None)
    sizes = np.stack([tables[name][:, axis] for name, axis in axes], axis=1)
    seen_ = Observed(*np.unique(sizes, axis=0, return_counts=True), axes, fixed)
    order = np.argsort(seen_.work(seen_.rows), kind="stable")
    return Observed(seen_.rows[order], seen_.weights[order], axes, fixed)


def _columns(observed: Any) -> dict[str, list[Any]]:
    if isinstance(observed, Mapping):
        return {str(name): list(shapes) for name, shapes in observed.items()}
    requests = list(observed) if isinstance(observed, Sequence) and not isinstance(observed, str | bytes) else []
    if not requests or not all(isinstance(request, Mapping) for request in requests):
        raise ProfileError("The observed shapes are not a dictionary, nor a list of them.", fix=_EXAMPLE)
    names = dict.fromkeys(name for request in requests for name in request)
    return {str(name): [request[name] for request in requests if name in request] for name in names}


def _table(shapes: list[Any], port: Input) -> np.ndarray:
    """The shapes of one input, a row each."""
    who = f"The observed shapes of '{port.name}'"
    try:
        table = np.asarray(shapes)
    except ValueError as error:  # ragged
        raise ProfileError(f"{who} differ in rank.", fix=_EXAMPLE) from error
    if table.ndim != 2 or table.dtype.kind not in "iu" or not len(table):
        raise ProfileError(f"{who} are not a list of shapes of whole numbers.", fix=_EXAMPLE)
    if table.shape[1] != port.length:
        has = f"Input '{port.name}' has {port.length} dimensions ({shape_text(port.dims)})"
        raise ProfileError(f"{has}, the observed shapes have {table.shape[1]}.", fix=_EXAMPLE)
    if table.min() < 1 or table.max() >= 2**31:
        wrong = table.min() if table.min() < 1 else table.max()
        raise ProfileError(f"A size of '{port.name}' is {wrong}.", fix=_EXAMPLE)
    for axis, size in enumerate(() if port.holds_sizes else port.dims):
        other = sorted({*table[:, axis].tolist()} - {size}) if size is not None else []
        if other:
            fixed = f"Dimension {axis} of input '{port.name}' is fixed at {size} in the model"
            raise ProfileError(f"{fixed}, and {other[0]} was observed.", fix=_OPEN)
    return table
