"""Calibrated scales in a file: used again when model, data and calibrator are the same, refused when they are not."""

from __future__ import annotations

import json
import math
import struct
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtlab.errors import AssetError
from trtlab.files import write_atomically

FORMAT = "trtlab calibration 1"


@dataclass(frozen=True)
class Calibration:
    """What decides a calibration: the hashes of model and samples, and the calibrator with its setting."""

    model: str
    data: str
    calibrator: str


def cached_scales(path: Path, wanted: Calibration, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The scales in the file `path`, or those that `make` returns, which are then kept there.

    Raises AssetError when the file is not such a cache (it stays as it is), when it is damaged, when it was made for
    another model, other data or another calibrator, and when its folder cannot be written.
    """
    if path.exists():
        return _read(path, wanted)
    _check_folder(path)
    scales = make()
    text = json.dumps({"format": FORMAT, **asdict(wanted), "scales": scales}, indent=1) + "\n"
    try:
        write_atomically(path, text, overwrite=False)
    except AssetError:
        if not path.exists():
            raise
        return _read(path, wanted)  # another process was faster
    return scales


def _read(path: Path, wanted: Calibration) -> dict[str, float]:
    content = _content(path)
    for what, own in asdict(wanted).items():
        if content.get(what) != own:
            raise AssetError(
                f"'{path}' was calibrated for {_OTHER[what]}: it says {_short(content.get(what))}, and this is "
                f"{_short(own)}.",
                fix="delete that file, or name another one in cache=.",
            )
    scales = content.get("scales")
    if not isinstance(scales, dict) or not all(isinstance(v, float) and 0 <= v < math.inf for v in scales.values()):
        raise AssetError(f"The scales in '{path}' are damaged.", fix="delete that file: it is made again.")
    return scales


_OTHER = {"model": "another model", "data": "other samples", "calibrator": "another calibrator"}


def _short(value: object) -> str:
    return f"'{value}'" if len(str(value)) < 40 else f"'{str(value)[:12]}…'"


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AssetError(f"'{path}' cannot be read ({error.strerror}).", fix="name a file in cache=.") from error
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise AssetError(
            f"'{path}' is not a calibration cache of this package, and is left as it is.",
            fix="name another file in cache=; read_tensorrt_cache() reads those of TensorRT 10 and older.",
        )
    return content


def _check_folder(path: Path) -> None:
    """Find out that nothing can be written there before a long calibration, not after it."""
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise AssetError(
            f"The calibration cache '{path}' cannot be written ({error.strerror}).",
            fix="choose a folder that exists, that you may write to and that has room.",
        ) from error


def read_tensorrt_cache(path: Path) -> dict[str, float]:
    """The scales in a calibration cache of TensorRT 10 or older: text, a line `tensor: FP32 number in hex` for each.

    Its scales are thresholds / 127, as ours are (so ONNX Runtime's TensorRT provider reads them), and may be given to
    quantize(scales=…). Raises AssetError for a file that is none.
    """
    scales = {}
    try:
        head, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
        if not head.startswith("TRT-"):
            raise ValueError(f"its first line is '{head[:40]}'")
        for line in filter(str.strip, lines):
            name, _, digits = line.rpartition(": ")
            (scales[name],) = struct.unpack(">f", bytes.fromhex(digits.strip().zfill(8)))
    except OSError as error:
        raise AssetError(f"'{path}' cannot be read ({error.strerror}).", fix="check the path.") from error
    except (ValueError, struct.error) as error:
        raise AssetError(
            f"'{path}' is not a calibration cache of TensorRT: {error}.", fix="it starts with a line such as TRT-8601-…"
        ) from error
    return scales
