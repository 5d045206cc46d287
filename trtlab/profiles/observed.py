"""Shapes seen in production, read into a table of sizes: a row a distinct shape, ordered by the work it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtlab.errors import ProfileError
from trtlab.profiles.inputs import Input
from trtlab.profiles.rules import words
from trtlab.profiles.shapes import Shape

if TYPE_CHECKING:
    import numpy as np

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
        import numpy as np

        return np.cumsum(self.weights) / self.weights.sum()

    def shapes(self, sizes: np.ndarray) -> dict[str, Shape]:
        """The shape of every input for a row of sizes."""
        found = {name: list(dims) for name, dims in self.fixed.items()}
        for (name, axis), size in zip(self.axes, sizes, strict=True):
            found[name][axis] = int(size)
        return {name: tuple(size or 0 for size in dims) for name, dims in found.items()}

    def work(self, rows: np.ndarray) -> np.ndarray:
        """The elements of all inputs for each row."""
        import numpy as np

        total = np.zeros(len(rows))
        for name, dims in self.fixed.items():
            part = np.full(len(rows), float(np.prod([size for size in dims if size is not None])))
            for column, (other, _) in enumerate(self.axes):
                part *= rows[:, column] if other == name else 1
            total += part
        return total


def read_observed(observed: Mapping[str, Any] | Sequence[Mapping[str, Any]], inputs: Mapping[str, Input]) -> Observed:
    """`observed` as a table; raises ProfileError, naming the input, for what cannot be read or does not fit."""
    import numpy as np

    columns = _columns(observed)
    dynamic = {name: port for name, port in inputs.items() if port.dynamic}
    if not dynamic:
        raise ProfileError(
            "The model has no dynamic dimension.", fix="export it with dynamic shapes, or build it as it is."
        )
    missing = sorted(set(dynamic) - set(columns)) or sorted(set(columns) - set(inputs))
    if missing:
        raise ProfileError(
            f"The observed shapes are of {', '.join(sorted(columns)) or 'no input'}; the model needs those of "
            f"{', '.join(dynamic)}.",
            fix=_EXAMPLE,
        )
    tables = {name: _table(name, columns[name], port) for name, port in dynamic.items()}
    if len({len(table) for table in tables.values()}) != 1:
        raise ProfileError("The inputs were not observed equally often.", fix="give one shape of each input a request.")
    axes = tuple((name, axis) for name, port in dynamic.items() for axis, size in enumerate(port.dims) if size is None)
    axes += tuple((name, at) for name, port in dynamic.items() if port.holds_sizes for at in range(port.length))
    sizes = np.stack([tables[name][:, axis] for name, axis in axes], axis=1)
    rows, weights = np.unique(sizes, axis=0, return_counts=True)
    fixed = {name: (None,) * port.length if port.holds_sizes else port.dims for name, port in dynamic.items()}
    seen = Observed(rows, weights, axes, fixed)
    order = np.argsort(seen.work(rows), kind="stable")
    return Observed(rows[order], weights[order], axes, fixed)


def _columns(observed: Any) -> dict[str, list[Any]]:
    if isinstance(observed, Mapping):
        return {str(name): list(shapes) for name, shapes in observed.items()}
    requests = list(observed) if isinstance(observed, Sequence) and not isinstance(observed, str | bytes) else []
    if not requests or not all(isinstance(request, Mapping) for request in requests):
        raise ProfileError("The observed shapes are not a dictionary, nor a list of them.", fix=_EXAMPLE)
    names = {str(name) for request in requests for name in request}
    return {name: [request[name] for request in requests if name in request] for name in sorted(names)}


def _table(name: str, shapes: list[Any], port: Input) -> np.ndarray:
    import numpy as np

    try:
        table = np.asarray(shapes)
    except ValueError as error:  # ragged
        raise ProfileError(f"The observed shapes of '{name}' differ in rank.", fix=_EXAMPLE) from error
    if table.ndim != 2 or table.dtype.kind not in "iu" or not len(table):
        raise ProfileError(f"The observed shapes of '{name}' are not a list of shapes of whole numbers.", fix=_EXAMPLE)
    if table.shape[1] != port.length:
        raise ProfileError(
            f"Input '{name}' has {port.length} dimensions ({words(port.dims)}), the observed shapes have "
            f"{table.shape[1]}.",
            fix=_EXAMPLE,
        )
    if table.min() < 1 or table.max() >= 2**31:
        raise ProfileError(f"A size of '{name}' is {table.min() if table.min() < 1 else table.max()}.", fix=_EXAMPLE)
    for axis, size in enumerate(() if port.holds_sizes else port.dims):
        other = sorted(set(table[:, axis].tolist()) - {size}) if size is not None else []
        if other:
            raise ProfileError(
                f"Dimension {axis} of input '{name}' is fixed at {size} in the model, and {other[0]} was observed.",
                fix="export the model with this dimension dynamic.",
            )
    return table
