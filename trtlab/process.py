"""The compiler process as its caller sees it: a job, its limits, its progress, and every end of it as a BuildError."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import psutil

from trtlab import compiler
from trtlab.errors import BuildError
from trtlab.logs import place_of_parser
from trtlab.tensorrt_choice import candidates

_HOME = str(Path(__file__).resolve().parent.parent)
_POLL_SECONDS = 0.05
PATIENCE_SECONDS = 1.0  # until progress is shown
Progress = Callable[[str, int, int], None]


@dataclass
class Transcript:
    """What the compiler process said about a job so far."""

    messages: list[tuple[str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    plan: bytes | None = None

    @property
    def stage(self) -> str:
        """What the process is at: start, build, parse, profile, deserialize."""
        return self.facts.get("stage", "start")

    @property
    def error(self) -> dict[str, str] | None:
        """TensorRT's message, perhaps with a node and its op, when the job failed."""
        return self.facts.get("error")

    @property
    def log(self) -> str:
        """Everything TensorRT printed, one message a paragraph."""
        return "\n".join(f"[{severity}] {message}" for severity, message in self.messages)

    def spoken(self, severity: str) -> list[str]:
        """The messages of TensorRT of a severity: ERROR (also INTERNAL_ERROR), WARNING, INFO or VERBOSE."""
        return [message for name, message in self.messages if name.endswith(severity)]

    @property
    def place(self) -> str:
        """Where the parser was when the log ended, such as " at node 'conv1' (Conv)"; "" in other stages."""
        return place_of_parser([message for _, message in self.messages]) if self.stage == "parse" else ""

    def __str__(self) -> str:
        return f"stage '{self.stage}'{self.place and f',{self.place}'}"


class CompilerProcess:
    """One compiler process (trtlab.compiler), for one job after the other; a context manager that leaves none behind.

    It has a session of its own, so that Ctrl-C reaches only the caller, who ends it.
    """

    def __init__(self) -> None:
        self.transcript = Transcript()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        path = os.pathsep.join(filter(None, (_HOME, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "trtlab.compiler", *candidates()], start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, pipesize=2**20,  # plans are large
            env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()  # progress; at the end of a job True, else None
        threading.Thread(target=self._receive, daemon=True).start()

    def __enter__(self) -> CompilerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # and what it may have started
            os.killpg(self.process.pid, signal.SIGKILL) if hasattr(os, "killpg") else self.process.kill()
        self.process.wait()
        for pipe in filter(None, (self.process.stdin, self.process.stdout, self._errors)):
            with contextlib.suppress(OSError):
                pipe.close()

    def run(self, order: dict[str, Any], data: bytes | Path, seconds: float) -> Transcript:
        """Do a job; raises BuildError at a crash, the time limit or Ctrl-C, with the transcript's log."""
        self.begin(order, data)
        return self.finish(seconds)

    def begin(self, order: dict[str, Any], data: bytes | Path) -> None:
        """Hand over a job (see compiler.Job) and its model or plan, and return while it is done."""
        self.transcript = Transcript()
        threading.Thread(target=self._send, args=(order, data), daemon=True).start()

    def finish(self, seconds: float, memory: float = math.inf, progress: Progress | None = None) -> Transcript:
        """Wait for the end of the job, which may take `memory` bytes resident in the process; report its progress."""
        begin, looked = time.monotonic(), 0.0
        try:
            while True:
                if time.monotonic() - looked > _POLL_SECONDS:
                    looked = time.monotonic()
                    self._check(looked - begin, seconds, memory)
                with contextlib.suppress(queue.Empty):
                    event = self._events.get(timeout=_POLL_SECONDS)
                    if event is None:
                        raise self._crash()
                    if event is True:
                        self._check(looked - begin, seconds, memory)  # a job may end between two looks
                        return self.transcript
                    if progress:
                        progress(*event)
        except KeyboardInterrupt as interrupt:
            raise cancelled(f"TensorRT was in stage '{self.transcript.stage}'", self.transcript.log) from interrupt

    def _send(self, order: dict[str, Any], data: bytes | Path) -> None:
        pipe: Any = self.process.stdin
        file, data = (str(data), b"") if isinstance(data, Path) else (None, data)
        with contextlib.suppress(OSError, ValueError):  # a process that died says so by its exit status
            compiler.write_frame(pipe, compiler.FACTS, json.dumps({**order, "file": file}).encode())
            compiler.write_frame(pipe, compiler.PLAN, data)

    def _receive(self) -> None:
        pipe: Any = self.process.stdout
        with contextlib.suppress(EOFError, OSError, ValueError):
            while True:
                self._take(*compiler.read_frame(pipe))
        self._events.put(None)

    def _take(self, kind: bytes, data: bytes) -> None:
        if kind == compiler.LOG:
            severity, _, message = data.decode().partition(" ")
            self.transcript.messages.append((severity, message))
        elif kind == compiler.PLAN:
            self.transcript.plan = data
        elif kind == compiler.PROGRESS:
            self._events.put(json.loads(data))
        else:
            self.transcript.facts |= json.loads(data)

    def _check(self, passed: float, seconds: float, memory: float) -> None:
        """Raise BuildError when a limit is passed."""
        resident = 0
        with contextlib.suppress(psutil.Error):
            resident = psutil.Process(self.process.pid).memory_info().rss
        if passed > seconds:
            stage, what = "time", f"did not finish within {seconds:g} s"
        elif resident > memory:
            stage, what = "memory", f"used more than {memory / 2**20:,.0f} MiB"
        else:
            return
        message = f"TensorRT {what} ({self.transcript}), so its process was ended."
        fix = f"raise {stage}_limit=, or build for smaller shapes."
        raise BuildError(message, stage=stage, log=self.transcript.log, fix=fix)

    def _crash(self) -> BuildError:
        how, told = f"exit status {self.process.wait()}", self.transcript
        with contextlib.suppress(ValueError):
            how = signal.Signals(-self.process.returncode).name
        self._errors.seek(max(0, self._errors.seek(0, 2) - 4096))
        last = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        said = f" It said: {last[:200].rstrip('.')}." if last else ""
        stage, message = "crash", f"TensorRT crashed ({how}) in {told}.{said}"
        fix = "'polygraphy debug reduce' finds the smallest part that does it; write that part with other operators."
        if how == "SIGKILL":
            stage, fix = "memory", "build for smaller shapes, or on a machine with more memory."
            message = f"The system ended TensorRT (SIGKILL) in {told}: most likely memory ran out."
        elif told.stage == "start":
            message = f"The compiler process ended before TensorRT was loaded ({how}).{said}"
            fix = "run 'python -m trtlab doctor'; it says which package is missing or broken."
        return BuildError(message, stage=stage, log=told.log, fix=fix)


def cancelled(when: str, log: str = "") -> BuildError:
    """The BuildError for Ctrl-C."""
    return BuildError(f"The build was cancelled while {when}.", stage="cancelled", log=log, fix="run the cell again.")


@contextlib.contextmanager
def progress_display(wish: bool | Progress, title: str) -> Iterator[Progress | None]:
    """The function to report (phase, done, total) to: `wish` itself, or one that shows a line until the end.

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
            shown, handle = now, show(handle, f"{title}: {phase}", done, total)

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
