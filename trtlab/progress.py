"""A progress bar for builds that take longer than a blink: in a terminal, in a notebook, or none."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from html import escape

Report = Callable[[str, int, int], None]
_PATIENCE_SECONDS = 1.0


@contextlib.contextmanager
def progress_display(wish: bool | Report, title: str) -> Iterator[Report | None]:
    """The function to report (phase, done, total) to; a bar appears once a build has taken a second.

    No bar for `wish` False, when TRTLAB_PROGRESS is 0, and where nobody watches (neither terminal nor notebook).
    """
    if callable(wish):
        yield wish
    elif not wish or os.environ.get("TRTLAB_PROGRESS") == "0":
        yield None
    elif "ipykernel" in sys.modules:
        yield from _notebook(title)
    elif sys.stderr is not None and sys.stderr.isatty():
        yield from _terminal(title)
    else:
        yield None


def _terminal(title: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import Progress

    start = time.monotonic()
    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task(f"compiling {title}", total=None)

    def report(phase: str, done: int, total: int) -> None:
        if time.monotonic() - start > _PATIENCE_SECONDS:
            bar.start()
            bar.update(task, description=f"compiling {title}: {phase}", completed=done, total=total or None)

    try:
        yield report
    finally:
        bar.stop()


def _notebook(title: str) -> Iterator[Report]:
    from IPython.display import HTML, display

    start = shown = time.monotonic()
    handle = None

    def report(phase: str, done: int, total: int) -> None:
        nonlocal handle, shown
        now = time.monotonic()
        if now - start < _PATIENCE_SECONDS or now - shown < 0.1:
            return
        shown = now
        words = escape(f"compiling {title}: {phase}")
        bar = HTML(f"<progress value='{done}' max='{max(total, 1)}'></progress> {words}")
        if handle is None:
            handle = display(bar, display_id=True)
        else:
            handle.update(bar)

    try:
        yield report
    finally:
        if handle is not None:
            handle.update(HTML(""))
