"""How far is the build? A line that appears once it has taken a second, and goes away at its end."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

Progress = Callable[[str, int, int], None]
PATIENCE_SECONDS = 1.0


@contextlib.contextmanager
def progress_display(wish: bool | Progress, title: str) -> Iterator[Progress | None]:
    """The function to report (phase, done, total) to: `wish` itself, or one that shows the progress.

    None for `wish` False, when TRTLAB_PROGRESS is 0, and where nobody watches (neither terminal nor notebook).
    """
    in_notebook = "ipykernel" in sys.modules
    watched = in_notebook or (sys.stderr is not None and sys.stderr.isatty())
    if callable(wish) or not (wish and watched and os.environ.get("TRTLAB_PROGRESS") != "0"):
        yield wish if callable(wish) else None
        return
    show = _in_notebook if in_notebook else _on_terminal
    start, shown, handle = time.monotonic(), 0.0, None

    def report(phase: str, done: int, total: int) -> None:
        nonlocal shown, handle
        now = time.monotonic()
        if now - start >= PATIENCE_SECONDS and now - shown > 0.1:
            shown, handle = now, show(handle, f"compiling {title}: {phase}", done, total)

    try:
        yield report
    finally:
        if shown:
            show(handle, "", 0, 0)


def _on_terminal(_: None, text: str, done: int, total: int) -> None:
    line = f"{text[:60]} {done}/{total}" if text else ""
    print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)


def _in_notebook(handle: Any, text: str, done: int, total: int) -> Any:
    from IPython.display import HTML, display

    bar = HTML(f"<progress value='{done}' max='{max(total, 1)}'></progress> {escape(text)}" if text else "")
    return display(bar, display_id=True) if handle is None else handle.update(bar) or handle
