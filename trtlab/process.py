"""Run the compiler process and outlive it: whatever ends it becomes a BuildError."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import IO, Any

from trtlab import compiler
from trtlab.errors import BuildError
from trtlab.messages import place_of_parser

Progress = Callable[[str, int, int], None]
_POLL_SECONDS = 0.05


@dataclass
class Transcript:
    """What the compiler process said so far."""

    messages: list[tuple[str, str]] = field(default_factory=list)
    stage: str = "start"
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    plan: bytes | None = None
    stderr: str = ""

    @property
    def log(self) -> str:
        """Everything TensorRT printed, one message a paragraph."""
        return "\n".join(f"[{severity}] {message}" for severity, message in self.messages)


@dataclass(frozen=True)
class Limits:
    """What one build may take: `seconds` of time and `memory` bytes resident in the compiler process."""

    seconds: float
    memory: int


class CompilerProcess:
    """One compiler process; a context manager that leaves no process behind."""

    def __init__(self) -> None:
        package = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "trtlab.compiler"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            pipesize=2**20,  # models and plans are large
            start_new_session=True,  # Ctrl-C reaches the caller, which then ends this process
        )
        self.frames: queue.Queue[tuple[bytes, bytes] | None] = queue.Queue()
        self.transcript = Transcript()
        self._errors: list[bytes] = []

    def __enter__(self) -> CompilerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _end(self) -> None:
        """Kill the process and what it may have started."""
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()

    def run(self, order: dict[str, Any], model: bytes, limits: Limits, progress: Progress | None) -> Transcript:
        """Compile; raises BuildError at a crash, a limit or Ctrl-C, with the transcript's log."""
        threads = [
            threading.Thread(target=target, args=args, daemon=True)
            for target, args in (
                (self._send, (order, model)),
                (self._receive, (self.process.stdout,)),
                (self._collect, (self.process.stderr,)),
            )
        ]
        for thread in threads:
            thread.start()
        try:
            for kind, data in self._watch(limits):
                self._take(kind, data, progress)
        except KeyboardInterrupt as interrupt:
            raise cancelled(f"TensorRT was in stage '{self.transcript.stage}'", self.transcript.log) from interrupt
        self.process.wait()
        self._end()
        threads[2].join(timeout=1)
        self.transcript.stderr = b"".join(self._errors).decode(errors="replace")
        if self.transcript.error is None and self.transcript.plan is None:
            raise self._crash()
        return self.transcript

    def _send(self, order: dict[str, Any], model: bytes) -> None:
        pipe = self.process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError, ValueError):  # a process that died says so by its exit status
            compiler.write_frame(pipe, b"J", json.dumps(order).encode())  # type: ignore[arg-type]
            compiler.write_frame(pipe, b"M", model)  # type: ignore[arg-type]

    def _receive(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while (frame := compiler.read_frame(pipe)) is not None:  # type: ignore[arg-type]
                self.frames.put(frame)
        self.frames.put(None)

    def _collect(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in pipe:
                self._errors = [*self._errors[-200:], line]

    def _watch(self, limits: Limits) -> Iterator[tuple[bytes, bytes]]:
        """The frames as they come; raises BuildError when a limit is passed."""
        end = time.monotonic() + limits.seconds
        next_look = 0.0
        while True:
            now = time.monotonic()
            if now > end:
                raise self._over("time", f"did not finish within {limits.seconds:g} s", "time_limit")
            if now >= next_look:
                next_look = now + _POLL_SECONDS
                if _resident(self.process.pid) > limits.memory:
                    raise self._over("memory", f"used more than {limits.memory / 2**20:,.0f} MiB", "memory_limit")
            try:
                frame = self.frames.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if frame is None:
                return
            yield frame

    def _take(self, kind: bytes, data: bytes, progress: Progress | None) -> None:
        if kind == compiler.PLAN:
            self.transcript.plan = data
            return
        content = json.loads(data)
        if kind == compiler.LOG:
            self.transcript.messages.append((content[0], content[1]))
        elif kind == compiler.STAGE:
            self.transcript.stage = content
        elif kind == compiler.ERROR:
            self.transcript.error = content
        elif kind == compiler.RESULT:
            self.transcript.result = content
        elif kind == compiler.PROGRESS and progress:
            progress(content[0], content[1], content[2])

    def _over(self, stage: str, what: str, option: str) -> BuildError:
        last = last_node(self.transcript)
        return BuildError(
            f"TensorRT {what} (stage '{self.transcript.stage}'{last}), so its process was ended.",
            stage=stage,
            log=self.transcript.log,
            fix=f"raise {option}=, or build for smaller shapes.",
        )

    def _crash(self) -> BuildError:
        code = self.process.returncode
        how = f"exit status {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-code).name
        lines = [line for line in self.transcript.stderr.splitlines() if line.strip()]
        said = f" It said: {lines[-1].strip()[:200].rstrip('.')}." if lines else ""
        stage, where = self.transcript.stage, last_node(self.transcript)
        kind, fix = "crash", "simplify the model around the node named here; 'polygraphy debug reduce' finds the part."
        message = f"TensorRT crashed ({how}) in stage '{stage}'{where}.{said}"
        if how == "SIGKILL":
            kind, fix = "memory", "build for smaller shapes, or on a machine with more memory."
            message = f"The system ended TensorRT (SIGKILL) in stage '{stage}'{where}: most likely memory ran out."
        elif stage == "start":
            message = f"The compiler process ended before TensorRT was loaded ({how}).{said}"
            fix = "run 'python -m trtlab doctor'; it says which package is missing or broken."
        return BuildError(message, stage=kind, log=self.transcript.log, fix=fix)


def cancelled(when: str, log: str = "") -> BuildError:
    """The BuildError for Ctrl-C."""
    return BuildError(f"The build was cancelled while {when}.", stage="cancelled", log=log, fix="run the cell again.")


def last_node(transcript: Transcript) -> str:
    """Where the parser was, from the log: ", at node 'conv1' (Conv)"; empty when parsing was over."""
    if transcript.stage != "parse":
        return ""
    place = place_of_parser([message for _, message in transcript.messages])
    return place and f",{place}"


def _resident(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


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
