"""NVIDIA's AutoCast, and what it says about its decisions."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtlab.errors import ModelError

if TYPE_CHECKING:
    import onnx
    import pandas as pd


def autocast(
    model: onnx.ModelProto,
    kind: str,
    data: Path | None,
    keep: Sequence[str],
    data_max: float,
    keep_io_types: bool,
    folder: Path,
) -> tuple[onnx.ModelProto, list[logging.LogRecord]]:
    """The converted model, and what AutoCast logged on the way."""
    import numpy as np
    import onnx

    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with _overheard() as messages:
        from modelopt.onnx.autocast import convert_to_mixed_precision

        try:
            converted = convert_to_mixed_precision(
                str(path),
                low_precision_type=kind,
                nodes_to_exclude=[re.escape(name) + "$" for name in keep],
                data_max=data_max if data else np.inf,
                keep_io_types=keep_io_types,
                calibration_data=str(data) if data else None,
            )
            onnx.checker.check_model(converted, full_check=True)
        except Exception as error:  # AutoCast raises whatever its parts do
            logged = [record.getMessage() for record in messages if record.levelno >= logging.ERROR]
            reason = sentence(" ".join([f"{error}:".replace(".:", ":"), *logged]).replace(str(path), "the model"))
            raise ModelError(
                f"AutoCast cannot convert the model to {kind.upper()}: {reason}",
                fix="'polygraphy check lint' tells whether the model itself is sound; keep=[…] leaves nodes alone.",
            ) from error
    return converted, messages


@contextlib.contextmanager
def _overheard() -> Iterator[list[logging.LogRecord]]:
    """Keep what ModelOpt and Polygraphy print off the screen; yields the list of AutoCast's messages."""
    from polygraphy.logger import G_LOGGER

    messages: list[logging.LogRecord] = []
    with warnings.catch_warnings(), G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        warnings.simplefilter("ignore")
        import modelopt.onnx.autocast  # noqa: F401  (sets up the logger that is borrowed here)

        handler = logging.Handler()
        handler.emit = messages.append  # type: ignore[method-assign, assignment]
        loggers = [logging.getLogger(name) for name in ("modelopt.onnx", "modelopt.onnx.autocast")]
        before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
        for logger in loggers:
            logger.handlers[:], logger.propagate = [handler], False
            logger.setLevel(logging.DEBUG)  # that an operator is not supported is only said there
        try:
            yield messages
        finally:
            for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
                logger.handlers[:], logger.propagate = handlers, propagate
                logger.setLevel(level)


def kept_nodes(model: onnx.ModelProto, messages: Sequence[logging.LogRecord], data_max: float) -> pd.DataFrame:
    """The nodes that AutoCast left in FP32, in the model's order, with its reason in plain words."""
    import pandas as pd

    texts = [record.getMessage() for record in messages]
    reasons = {}
    for node in model.graph.node:
        for text in texts:
            if text.startswith(f"Skipping node {node.name}: "):
                reasons[node.name] = _reason(text.removeprefix(f"Skipping node {node.name}: "), data_max)
            elif text.startswith(f"Node {node.name} (op type: {node.op_type}) is not supported in low precision"):
                reasons.setdefault(node.name, f"ONNX has no {node.op_type} in that type")
    rows = [(node.name, node.op_type, reasons[node.name]) for node in model.graph.node if node.name in reasons]
    return pd.DataFrame(rows, columns=["node", "op", "reason"])


def _reason(text: str, data_max: float) -> str:
    """AutoCast's reason in plain words; its own where a later version has another."""
    reach = re.search(r"IO out of range: .*absmax=([^,]+)", text) or re.search(r"IO out of range: (.*), range", text)
    weight = re.search(r"initializer (.+) out of range: min=(\S+), max=(\S+), range", text)
    if weight:
        return f"the weights '{weight[1]}' reach {max(map(abs, map(float, weight.groups()[1:]))):,.6g}"
    if reach and "=" not in reach[1]:
        return f"a tensor it reads or writes reaches {float(reach[1]):,.6g}, beyond {data_max:g}"
    if reach:
        return f"a tensor it reads or writes goes beyond {data_max:g} ({reach[1]})"
    return {"DisabledNodeNameRegexRule": "named in keep"}.get(text, text)


def sentence(text: str) -> str:
    """`text` on one line of at most 300 characters, with a full stop."""
    return " ".join(text.split())[:300].rstrip(".") + "."
