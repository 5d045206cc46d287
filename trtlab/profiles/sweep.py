"""Many shapes of one model: build each of them, two at a time, and put the memory they take side by side."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from trtlab.errors import ModelError, ProfileError, TrtlabError

if TYPE_CHECKING:
    import pandas as pd

    from trtlab.engine import Engine
    from trtlab.gpus import Gpu
    from trtlab.onnx_model import Model

_AT_ONCE = 2  # compiler processes: a build uses about one core, and memory for two copies of the weights


def sweep(model: Model, shapes: Sequence[Mapping[str, Any]], gpu: str | float | Gpu | None = None) -> pd.DataFrame:
    """Build `model` for each of `shapes`, maps as `build` takes them, and tell the figures: one row a shape.

    Columns: shapes, activation_bytes, weight_bytes, scratch_bytes, kernels, error. A shape that fails keeps its
    error in its row, without figures. Raises ModelError when there is no model, ProfileError when `shapes` is no list.
    """
    import pandas as pd

    if isinstance(shapes, Mapping | str) or not isinstance(shapes, Iterable):
        raise ProfileError(
            "sweep() takes a list of shapes, a map for each build.",
            fix="write [{'x': (batch, 3, 224, 224)} for batch in (1, 2, 4, 8)].",
        )
    wanted = list(shapes)
    rows = [
        {"shapes": _words(one), **_figures(result)}
        for one, result in zip(wanted, build_each(model, wanted, gpu), strict=True)
    ]
    columns = ["shapes", "activation_bytes", "weight_bytes", "scratch_bytes", "kernels", "error"]
    numbers = dict.fromkeys(columns[1:5], "Int64")
    return pd.DataFrame(rows, columns=columns).astype(numbers)


def build_each(
    model: Model, shapes: Sequence[Mapping[str, Any]], gpu: str | float | Gpu | None = None, time_limit: float = 600
) -> list[Engine | TrtlabError]:
    """The engine of each of `shapes`, or the error that stopped its build; the model is read once.

    A build may take `time_limit` seconds, and its share of four fifths of the memory that is free.
    Ctrl-C ends the builds that run and starts no other. Raises ModelError when it is the model that no build accepts.
    """
    import psutil

    from trtlab.build import build
    from trtlab.hardware import memory_gib
    from trtlab.onnx_model import read_source

    source, stop = read_source(model), threading.Event()
    free = min(psutil.virtual_memory().available / 2**30, memory_gib() or math.inf)
    limits = {"time_limit": time_limit, "memory_limit": 0.8 * free / _AT_ONCE}

    def report(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt  # build() turns it into an error of its own and ends its process

    def one(wanted: Mapping[str, Any]) -> Engine | TrtlabError:
        try:
            return build(source, gpu, wanted, progress=report, **limits)
        except TrtlabError as error:
            return error

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        waiting = [pool.submit(one, wanted) for wanted in shapes]
        try:
            found = [future.result() for future in waiting]
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if found and all(isinstance(result, ModelError) for result in found):
        raise found[0]  # type: ignore[misc]
    return found


def _figures(result: Engine | TrtlabError) -> dict[str, Any]:
    if isinstance(result, TrtlabError):
        return {"error": result.message}
    return {
        "activation_bytes": result.activation_bytes,
        "weight_bytes": result.weight_bytes,
        "scratch_bytes": result.scratch_bytes,
        "kernels": len(result.kernels),
        "error": "",
    }


def _words(shapes: Any) -> str:
    """The shapes as a user would say them: "x 8×3×224×224"."""
    if not isinstance(shapes, Mapping):
        return str(shapes)
    return ", ".join(f"{name} {_shape(shape)}" for name, shape in shapes.items())


def _shape(shape: Any) -> str:
    if not isinstance(shape, tuple | list):
        return str(shape)
    joint = " … " if any(isinstance(size, tuple | list) for size in shape) else "×"
    return joint.join(_shape(size) for size in shape)
