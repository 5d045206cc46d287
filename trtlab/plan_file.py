"""Is this file an engine, and does the runtime of this machine load it? TensorRT's own Runtime answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from trtlab.errors import AssetError
from trtlab.machine import load_tensorrt

_COPY = "the file is not as long as it says: copy it again, or build it again."
# What the runtime says, and what it means; the first that fits counts.
_MEANING = (
    ("empty memory buffer", "empty", "the file has no content: build the engine again and write it whole."),
    ("magicTag", "not an engine", "this is no plan of this TensorRT, or its first bytes are damaged: build it again."),
    ("minBufferSize", "cut", _COPY),
    ("cursor < blobSize", "cut", _COPY),
    ("header.size == blobSize", "cut", _COPY),
    ("Version tag does not match", "another version", "build the engine with the TensorRT that is to run it."),
    ("cudaError 35", "needs a GPU", "its header is in order, and more is read on an NVIDIA GPU only."),
)
_NOISE = "[checkMacros"  # without a GPU it follows every other error
_ON_GPU = ("loads", "it was built for this GPU and this version.")
_OTHER = ("refused", "read the message; build the engine on the machine that is to run it.")


@dataclass(frozen=True)
class PlanCheck:
    """What the runtime made of a file: its size, a state, TensorRT's message and what to do.

    States: loads, needs a GPU, empty, not an engine, cut, another version, refused, crashed.
    """

    name: str
    nbytes: int
    state: str
    said: str
    fix: str

    def _repr_html_(self) -> str:
        return f"<b>{escape(self.name)}</b>: {self.state}. {escape(self.fix)}<br><code>{escape(self.said)}</code>"


def check_plan(plan: bytes | str | Path, name: str = "", *, time_limit: float = 60) -> PlanCheck:
    """Let TensorRT's Runtime deserialize a plan (a file or its bytes) in a process of its own, and say what it said.

    Deserializing runs what the file brings along: ask it only about files you trust. Raises AssetError when the file
    cannot be read. `time_limit` is in seconds.
    """
    if isinstance(plan, str | Path):
        name = name or Path(plan).name
        try:
            plan = Path(plan).read_bytes()
        except OSError as error:
            raise AssetError(f"'{name}' cannot be read ({error.strerror}).", fix="check the path.") from error
    command = [sys.executable, "-P", "-m", "trtlab.plan_file"]
    home = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            command, input=bytes(plan), capture_output=True, timeout=time_limit, check=False,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return PlanCheck(name, len(plan), "refused", f"no answer within {time_limit:g} s", _OTHER[1])
    if done.returncode != 0 or not done.stdout:
        return PlanCheck(name, len(plan), "crashed", f"the process ended with status {done.returncode}", _OTHER[1])
    loaded, messages = json.loads(done.stdout)
    state, said, fix = _verdict(loaded, messages)
    return PlanCheck(name, len(plan), state, said, fix)


def _verdict(loaded: bool, messages: list[str]) -> tuple[str, str, str]:
    if loaded:
        return _ON_GPU[0], "", _ON_GPU[1]
    for key, state, fix in _MEANING:
        for message in messages:
            if key in message and not message.startswith(_NOISE):
                return state, message, fix
    return _OTHER[0], messages[0] if messages else "", _OTHER[1]


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.name.endswith("ERROR"):
                self.errors.append(message)

    return Logger()


def main() -> int:
    """Deserialize standard input and print [loaded, the errors]."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    trt = load_tensorrt()
    logger = _logger(trt)
    engine = trt.Runtime(logger).deserialize_cuda_engine(sys.stdin.buffer.read())
    json.dump([engine is not None, logger.errors], answers)
    answers.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
