"""Arithmetic that no half precision has: chapter 04, which checks its claims, must notice it."""

from __future__ import annotations

from spoiled_engines import everywhere

from trtlab.numerics import running


def overflow_hidden() -> None:
    """Half precision is computed in single precision, where nothing overflows."""
    everywhere(running._reference, running._runtime)
