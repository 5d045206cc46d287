"""A stand-in, not TensorRT: it does what a compiler must not do, where STAND_IN says: "<stage> <deed>".

Only a compiler process that finds this folder on PYTHONPATH gets it; stages are import, parse and build.
"""

import ctypes
import os
import subprocess
import sys
import time
from enum import Enum
from types import SimpleNamespace

__version__ = "0.0.stand.in"
_STAGE, _, _DEED = os.environ.get("STAND_IN", "").partition(" ")


def _say_and_exit() -> None:
    print("Illegal instruction in libfantasy.so.", file=sys.stderr, flush=True)
    os._exit(7)


def _raise() -> None:
    raise RuntimeError("the stand-in gave up")


def _tell(pid: int) -> None:
    """Write a process id where the test looks for it."""
    if "STAND_IN_FILE" in os.environ:
        with open(os.environ["STAND_IN_FILE"], "a") as file:
            file.write(f"{pid} ")


def _start_a_child() -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    _tell(subprocess.Popen(sleeper, stdin=subprocess.DEVNULL).pid)


def _hang_with_a_child() -> None:
    _start_a_child()
    time.sleep(100)


def _exit_and_leave_a_child() -> None:
    _start_a_child()
    os._exit(9)


_DEEDS = {
    "abort": os.abort,
    "fault": lambda: ctypes.string_at(0),
    "floating point": lambda: os.kill(os.getpid(), 8),
    "killed": lambda: os.kill(os.getpid(), 9),
    "exit": _say_and_exit,
    "quiet exit": lambda: os._exit(0),
    "raise": _raise,
    "hang with the GIL": lambda: ctypes.PyDLL(None).sleep(100),
    "hang with a child": _hang_with_a_child,
    "leave a child": _exit_and_leave_a_child,
    "print": lambda: os.write(1, b"noise on standard output\n" * 1000),
    "shout": lambda: os.write(2, b"noise on standard error\n" * 100_000),
}


def _misbehave(stage: str) -> None:
    if stage == _STAGE:
        _tell(os.getpid())
        _DEEDS[_DEED]()


_misbehave("import")


class ComputeCapability(Enum):
    SM89 = 89


class ProfilingVerbosity(Enum):
    DETAILED = 2


class ILogger:
    pass


class IProgressMonitor:
    pass


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> SimpleNamespace:
        return SimpleNamespace(num_layers=1, num_outputs=1)

    def create_builder_config(self) -> SimpleNamespace:
        return SimpleNamespace(set_compute_capability=lambda target, index: None)

    def build_serialized_network(self, network: object, config: object) -> bytes:
        self.logger.log(SimpleNamespace(name="VERBOSE"), "the stand-in builds")
        _misbehave("build")
        return b"a plan of the stand-in"


class OnnxParser:
    num_errors = 0

    def __init__(self, network: object, logger: ILogger) -> None:
        self.logger = logger

    def parse(self, data: bytes) -> bool:
        self.logger.log(SimpleNamespace(name="VERBOSE"), "Parsing node: conv1 [Conv]")
        _misbehave("parse")
        return True
