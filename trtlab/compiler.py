"""The compiler process: TensorRT works here, so that nothing it does can reach the caller.

`python -m trtlab.compiler tensorrt_rtx …` (the modules to try, in order) reads jobs from standard input, two frames
each (JSON, and the model or plan), and writes frames to standard output. A frame is a kind (one byte), a length (8
bytes, little endian) and that many bytes. The TensorRT calls are those of chapter 00. Nothing is imported here but
TensorRT: what this file imports, every build waits for.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import struct
import sys
import threading
import time
from typing import Any, BinaryIO

if sys.platform == "linux":
    import ctypes
    import resource

# A line of TensorRT's log; facts as {name: value}; progress as [phase, done, total] or, at the end, true; the plan.
LOG, FACTS, PROGRESS, PLAN = b"L", b"F", b"P", b"E"


def write_frame(pipe: BinaryIO, kind: bytes, data: bytes | memoryview, flush: bool = True) -> None:
    """Send one frame, at the latest with the next that flushes."""
    pipe.write(kind + struct.pack("<Q", len(data)))
    pipe.write(data)
    if flush:
        pipe.flush()


def read_frame(pipe: BinaryIO) -> tuple[bytes, bytes]:
    """The next (kind, data); raises EOFError when the other side is gone."""
    head = pipe.read(9)
    length = int.from_bytes(head[1:], "little")
    data = pipe.read(length)
    if len(head) < 9 or len(data) < length:
        raise EOFError
    return head[:1], data


class Failed(Exception):
    """The job stopped: TensorRT's message, and what else is known (node, op)."""


class Job:
    """One job after the other, TensorRT to do them with, and the way back to the caller.

    `order` holds `task` (build or deserialize), and for a build: `target`, `profiles`, `file` (the model, when it does
    not come as data), `path` (where external weights are looked for), `setting` (lines of Python that see trt, config,
    builder and network before the build) and `tolerant` (go on after a refused profile, and tell).
    """

    def __init__(self, trt: Any, pipe: BinaryIO) -> None:
        self.trt, self.pipe, self.lock = trt, pipe, threading.Lock()
        self.order: dict[str, Any] = {}
        self.logger = _logger(self)  # one for all jobs: TensorRT keeps the first that it gets
        self.building = False  # thousands of messages come then; until then a crash must find the last one sent

    def send(self, kind: bytes, data: bytes | memoryview, flush: bool = True) -> None:
        """Send a frame."""
        with self.lock:
            write_frame(self.pipe, kind, data, flush)

    def tell(self, **facts: Any) -> None:
        """Send facts: the stage, an error, what is known of the engine."""
        self.send(FACTS, json.dumps(facts).encode())

    def do(self, order: dict[str, Any], data: bytes) -> None:
        """Do a job; whatever happens is sent as frames."""
        self.order, self.building = order, False
        try:
            (build if order["task"] == "build" else deserialize)(self, data)
        except Failed as failed:
            self.tell(error=dict(zip(("message", "node", "op", "said"), failed.args, strict=False)))
        except Exception as error:  # whatever it is, the caller gets it as a message
            self.tell(error={"message": f"{type(error).__name__}: {error}"})
        self.send(PROGRESS, b"true")


def build(job: Job, data: bytes) -> None:
    """Parse, configure and build; the engine's description and its plan go back as frames."""
    trt = job.trt
    job.tell(stage="build")
    builder = trt.Builder(job.logger)
    typed = getattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))  # TensorRT 10 must be asked for it
    job.tell(stage="parse")
    parser = trt.OnnxParser(network, job.logger)  # it lives as long as the network
    _parse(job, parser, network, data)
    job.tell(stage="profile")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = _progress(job)
    if hasattr(trt, "ComputeCapability"):  # full TensorRT always compiles for the GPU of this machine
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, job.order["target"]), 0)
    _profiles(job, builder, network, config)
    job.tell(stage="build")
    if job.order.get("setting"):
        names = {"trt": trt, "logger": job.logger, "builder": builder, "network": network, "model": data}
        exec(compile(job.order["setting"], "setting", "exec"), {**names, "config": config})
    job.building = True
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if plan is None:
        raise Failed("")
    job.tell(network_layers=network.num_layers, seconds=seconds)
    if not hasattr(trt, "ComputeCapability"):  # full TensorRT does not print its layers; its inspector tells them
        engine = trt.Runtime(job.logger).deserialize_cuda_engine(plan)
        if engine is None:
            raise Failed("The engine was built, but the runtime of this machine cannot read it.")
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        job.tell(inspector=str(text))
    job.send(PLAN, memoryview(plan).cast("B"))


def deserialize(job: Job, data: bytes) -> None:
    """Let the runtime read a plan; what it says is in the log."""
    job.tell(stage="deserialize")
    job.tell(loaded=job.trt.Runtime(job.logger).deserialize_cuda_engine(data) is not None)


def _parse(job: Job, parser: Any, network: Any, model: Any) -> None:
    if job.order.get("file"):
        with open(job.order["file"], "rb") as file:
            model = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    path = job.order.get("path")
    parsed = parser.parse(model, path) if path else parser.parse(model)
    if parser.num_errors:
        error = parser.get_error(0)
        raise Failed(error.desc(), error.node_name(), error.node_operator(), str(error))
    if not parsed:
        raise Failed("")
    if network.num_outputs == 0:
        raise Failed("The network has no outputs.")


def _profiles(job: Job, builder: Any, network: Any, config: Any) -> None:
    """A profile gives the shape of an input, or the values of one that TensorRT takes for a shape tensor."""
    ports = [network.get_input(index) for index in range(network.num_inputs)] if job.order["profiles"] else []
    shape_tensors = {port.name for port in ports if port.is_shape_tensor}
    raised, returned = "", []
    for number, shapes in enumerate(job.order["profiles"]):
        profile = builder.create_optimization_profile()
        for name, sizes in shapes.items():
            try:
                (profile.set_shape_input if name in shape_tensors else profile.set_shape)(name, *sizes)
            except (TypeError, RuntimeError) as error:
                raised = raised or f"{type(error).__name__}: {str(error).splitlines()[0]}"
        returned.append(config.add_optimization_profile(profile))
        if (raised or returned[-1] < 0) and not job.order.get("tolerant"):
            raise Failed(raised or f"TensorRT refuses profile {number}: {shapes}.")
    job.tell(raised=raised, returned=returned)


def _logger(job: Job) -> Any:
    class Logger(job.trt.ILogger):  # type: ignore[name-defined]
        def log(self, severity: Any, message: str) -> None:
            text = f"{severity.name} {message}".encode("utf-8", "replace")
            job.send(LOG, text, flush=not job.building or severity.name != "VERBOSE")

    return Logger()


def _progress(job: Job) -> Any:
    steps: dict[str, int] = {}

    class Progress(job.trt.IProgressMonitor):  # type: ignore[name-defined]
        def phase_start(self, phase: str, parent: str | None, count: int) -> None:
            steps[phase] = count
            self.step_complete(phase, -1)

        def step_complete(self, phase: str, step: int) -> bool:
            job.send(PROGRESS, json.dumps([phase, step + 1, steps[phase]]).encode())
            return True

        def phase_finish(self, phase: str) -> None:
            self.step_complete(phase, steps[phase] - 1)

    return Progress()


def _first_of(name: str, *others: str) -> Any:
    """The first that can be imported, as trtlab.tensorrt_choice chooses in the caller."""
    try:
        return importlib.import_module(name)
    except Exception:
        return _first_of(*others)


def _under_control() -> None:
    """Let this process go down with the caller, before the caller when memory runs out, and without a core file."""
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def main() -> None:
    """Do every job that comes until the caller is gone; a job that fails with a message is done too."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what C++ code prints must not get between the frames
    if sys.platform == "linux":
        _under_control()
    job = Job(_first_of(*sys.argv[1:]), pipe)
    while True:
        (_, order), (_, data) = read_frame(sys.stdin.buffer), read_frame(sys.stdin.buffer)
        job.do(json.loads(order), data)


if __name__ == "__main__":
    main()
