"""The compiler process as its caller sees it: a job, its limits, and every end of it as a BuildError."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from trtlab import compiler
from trtlab.errors import BuildError
from trtlab.logs import place_of_parser
from trtlab.progress import Progress

_HOME = str(Path(__file__).resolve().parent.parent)
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Limits:
    """What one job may take: `seconds` of time and `memory` bytes resident in the compiler process."""

    seconds: float
    memory: float


@dataclass
class Transcript:
    """What the compiler process said about a job so far."""

    messages: list[tuple[str, str]] = field(default_factory=list)
    stage: str = "start"
    error: dict[str, Any] | None = None
    result: dict[str, Any] = field(default_factory=dict)
    plan: bytes | None = None

    @property
    def log(self) -> str:
        """Everything TensorRT printed, one message a paragraph."""
        return "\n".join(f"[{severity}] {message}" for severity, message in self.messages)

    def spoken(self, severity: str) -> list[str]:
        """The messages of TensorRT of a severity: ERROR (also INTERNAL_ERROR), WARNING, INFO or VERBOSE."""
        return [message for name, message in self.messages if name.endswith(severity)]

    @property
    def place(self) -> str:
        """The stage, and where the parser was when the log ended: "stage 'parse', at node 'conv1' (Conv)"."""
        node = place_of_parser([message for _, message in self.messages]) if self.stage == "parse" else ""
        return f"stage '{self.stage}'{node and f',{node}'}"


class CompilerProcess:
    """One compiler process (trtlab.compiler), for one job after the other; a context manager that leaves none behind.

    `tensorrt` is the name of the module to import: tensorrt_rtx or tensorrt. The process has a session of its own, so
    that Ctrl-C reaches only the caller, who ends it.
    """

    def __init__(self, tensorrt: str) -> None:
        self.transcript = Transcript()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        path = os.pathsep.join(filter(None, (_HOME, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "trtlab.compiler", tensorrt], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, pipesize=2**20, start_new_session=True,  # models and plans are large
            env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip
        # Progress; True at the end of a job, None at that of the process.
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._receive, args=(self.process.stdout,), daemon=True).start()

    def __enter__(self) -> CompilerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # and what it may have started
            os.killpg(self.process.pid, signal.SIGKILL) if hasattr(os, "killpg") else self.process.kill()
        self.process.wait()
        for pipe in filter(None, (self.process.stdin, self.process.stdout, self._errors)):
            with contextlib.suppress(OSError):
                pipe.close()

    def run(self, order: dict[str, Any], data: bytes, limits: Limits) -> Transcript:
        """Do a job; raises BuildError at a crash, a limit or Ctrl-C, with the transcript's log."""
        self.begin(order, data)
        return self.finish(limits)

    def begin(self, order: dict[str, Any], data: bytes) -> None:
        """Hand a job over (see compiler.Job) and return while it is done."""
        self.transcript = Transcript()
        threading.Thread(target=self._send, args=(order, data), daemon=True).start()

    def finish(self, limits: Limits, progress: Progress | None = None) -> Transcript:
        """Wait for the end of the job and report its progress."""
        until = time.monotonic() + limits.seconds
        try:
            while True:
                self._check(limits, until)
                with contextlib.suppress(queue.Empty):
                    event = self._events.get(timeout=_POLL_SECONDS)
                    if event is None:
                        raise self._crash()
                    if event is True:
                        return self.transcript
                    if progress:
                        progress(*event)
        except KeyboardInterrupt as interrupt:
            raise cancelled(f"TensorRT was in stage '{self.transcript.stage}'", self.transcript.log) from interrupt

    def _send(self, order: dict[str, Any], data: bytes) -> None:
        pipe: Any = self.process.stdin
        with contextlib.suppress(OSError, ValueError):  # a process that died says so by its exit status
            compiler.write_frame(pipe, compiler.JOB, json.dumps(order).encode())
            compiler.write_frame(pipe, compiler.DATA, data)

    def _receive(self, pipe: Any) -> None:
        with contextlib.suppress(OSError, ValueError):
            while (frame := compiler.read_frame(pipe)) is not None:
                self._take(*frame)
        self._events.put(None)

    def _take(self, kind: bytes, data: bytes) -> None:
        transcript = self.transcript
        if kind == compiler.LOG:
            severity, _, message = data.decode().partition(" ")
            transcript.messages.append((severity, message))
        elif kind == compiler.PLAN:
            transcript.plan = data
        elif kind == compiler.DONE:
            self._events.put(True)
        elif kind == compiler.PROGRESS:
            self._events.put(json.loads(data))
        elif kind == compiler.STAGE:
            transcript.stage = json.loads(data)
        elif kind == compiler.ERROR:
            transcript.error = json.loads(data)
        else:
            transcript.result |= json.loads(data)

    def _check(self, limits: Limits, until: float) -> None:
        """Raise BuildError when a limit is passed."""
        resident = 0
        with contextlib.suppress(psutil.Error):
            resident = psutil.Process(self.process.pid).memory_info().rss
        stage, what = "time", f"did not finish within {limits.seconds:g} s"
        if time.monotonic() <= until:
            if resident <= limits.memory:
                return
            stage, what = "memory", f"used more than {limits.memory / 2**20:,.0f} MiB"
        told = self.transcript
        message = f"TensorRT {what} ({told.place}), so its process was ended."
        raise BuildError(message, stage=stage, log=told.log, fix=f"raise {stage}_limit=, or build for smaller shapes.")

    def _crash(self) -> BuildError:
        how, told = f"exit status {self.process.wait()}", self.transcript
        with contextlib.suppress(ValueError):
            how = signal.Signals(-self.process.returncode).name
        self._errors.seek(max(0, self._errors.seek(0, 2) - 4096))
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        said = f" It said: {last[:200].rstrip('.')}." if last else ""
        stage, message = "crash", f"TensorRT crashed ({how}) in {told.place}.{said}"
        fix = "simplify the model around the node named here; 'polygraphy debug reduce' finds the part."
        if how == "SIGKILL":
            stage, fix = "memory", "build for smaller shapes, or on a machine with more memory."
            message = f"The system ended TensorRT (SIGKILL) in {told.place}: most likely memory ran out."
        elif told.stage == "start":
            message = f"The compiler process ended before TensorRT was loaded ({how}).{said}"
            fix = "run 'python -m trtlab doctor'; it says which package is missing or broken."
        return BuildError(message, stage=stage, log=told.log, fix=fix)


def cancelled(when: str, log: str = "") -> BuildError:
    """The BuildError for Ctrl-C."""
    return BuildError(f"The build was cancelled while {when}.", stage="cancelled", log=log, fix="run the cell again.")
