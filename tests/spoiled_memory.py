"""Figures of memory that no compiler gives: a chapter that checks its claims must notice them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from spoiled_engines import everywhere

from trtlab import building, buildlog
from trtlab.engine import Engine


def nothing_is_reused() -> None:
    """From now on every engine reserves a place for each of its tensors."""
    _spoil(without_reuse)


def memory_does_not_grow() -> None:
    """From now on every engine reserves 20 MiB, whatever it is."""
    _spoil(lambda engine: replace(engine, activation_bytes=20 * 2**20, scratch_bytes=20 * 2**20, weight_bytes=2**20))


def without_reuse(engine: Engine) -> Engine:
    """The engine, its activation memory the sum of all tensors twice over."""
    ports = {port.name for port in engine.ports}
    tensors = {tensor.name: tensor.nbytes or 0 for layer in engine.layers for tensor in layer.outputs}
    total = sum(size for name, size in tensors.items() if name not in ports)
    return replace(engine, activation_bytes=2 * total + 2**20)


def _spoil(lie: Callable[[Engine], Engine]) -> None:
    """Every engine that is read from a log, here or by build(), goes through `lie`."""
    assert building, "imported first, so that it is spoiled too"
    read = buildlog.read_build_log
    everywhere(read, lambda messages: lie(read(messages)))
