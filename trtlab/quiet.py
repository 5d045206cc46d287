"""torch.onnx.export without the noise: what it logs and prints is hidden, what it warns of is handed over as a list."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

# They repeat what an exception or the exported model says as well.
_LOGGERS = ("torch.fx.experimental.symbolic_shapes", "torch.onnx._internal.exporter._compat")


@contextlib.contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Hide logs and prints to stderr of the block; yields the list that its Python warnings are collected in."""
    from trtlab.models.export import hide_known_noise

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("always")
        with hide_known_noise():
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            try:
                yield warned
            finally:
                for logger, level in zip(loggers, levels, strict=True):
                    logger.setLevel(level)
