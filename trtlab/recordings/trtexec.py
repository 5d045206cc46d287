"""Read a recording of one's own out of the three JSON files that trtexec exports."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from trtlab.errors import AssetError
from trtlab.inspector import read_inspector
from trtlab.recordings.recorded import Recording, TimedLayer

File = str | Path


def read_trtexec(times: File, profile: File, layer_info: File, *, name: str = "", gpu: str = "") -> Recording:
    """The run that trtexec exported with --exportTimes, --exportProfile and --exportLayerInfo (TensorRT 8, 10, 11).

    `end_to_end_ms` is the median `computeMs`; a layer's time is its average over the profiled runs. `name` and `gpu`
    are what you call them. Raises AssetError naming the file that is missing, cut off or of another engine.
    """
    runs = _list(times, "--exportTimes")
    compute = [_number(run, "computeMs", times, "--exportTimes") for run in runs]
    if not compute:
        raise _foreign(times, "--exportTimes", "it holds no run")
    timed = [entry for entry in _list(profile, "--exportProfile") if not (isinstance(entry, dict) and "count" in entry)]
    if not timed:
        raise _foreign(profile, "--exportProfile", "it holds no layer")
    layers = tuple(
        TimedLayer(layer, _number(entry, "averageMs", profile, "--exportProfile"))
        for layer, entry in _joined(profile, timed, layer_info)
    )
    source = f"your own: {Path(times).name}, {Path(profile).name}, {Path(layer_info).name}"
    return Recording(name or Path(profile).stem, layers, median(compute), gpu=gpu, source=source)


def _joined(profile: File, timed: list[Any], layer_info: File) -> list[tuple[Any, Any]]:
    """(layer, its entry in the profile), in the order of the profile; equal names in the order they come."""
    try:
        engine = read_inspector(_text(layer_info, "--exportLayerInfo"))
    except AssetError as error:
        raise AssetError(f"'{layer_info}': {error.message}", fix=error.diagnosis.fix) from error
    waiting: dict[str, list[Any]] = {}
    for layer in engine.layers:
        waiting.setdefault(layer.name, []).append(layer)
    pairs = []
    for entry in timed:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise _foreign(profile, "--exportProfile", "an entry has no name")
        if not waiting.get(name):
            raise AssetError(
                f"'{profile}' times the layer '{name}', which '{layer_info}' does not have.",
                fix="export both files in one run of trtexec.",
            )
        pairs.append((waiting[name].pop(0), entry))
    return pairs


def _text(file: File, option: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise AssetError(f"'{file}' cannot be read ({reason}).", fix=f"give the file of trtexec {option}=….") from error


def _list(file: File, option: str) -> list[Any]:
    """The JSON list in `file`."""
    try:
        content = json.loads(_text(file, option))
    except ValueError as error:
        raise AssetError(
            f"'{file}' is not whole JSON ({error}).", fix=f"export it again with trtexec {option}=…."
        ) from error
    if not isinstance(content, list):
        raise _foreign(file, option, "it is not a list")
    return content


def _number(entry: Any, key: str, file: File, option: str) -> float:
    """A time in milliseconds; anything else says which file is not what it should be."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise _foreign(file, option, f"an entry has no time '{key}'")
    return float(value)


def _foreign(file: File, option: str, reason: str) -> AssetError:
    return AssetError(f"'{file}' is not what trtexec {option} writes: {reason}.", fix=f"give the file of {option}=….")
