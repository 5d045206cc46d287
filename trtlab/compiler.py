"""The compiler process: TensorRT builds one engine here, so that nothing it does can reach the caller.

`python -m trtlab.compiler` reads a job from standard input and writes frames to standard output: a kind (one byte), a
length (8 bytes, little endian) and that many bytes. Standard input stays open as a lifeline: when it closes, the caller
is gone, and this process ends at once. The TensorRT calls are those of chapter 00.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import threading
import time
from typing import Any, BinaryIO

from trtlab.machine import load_tensorrt

LOG, STAGE, PROGRESS, ERROR, RESULT, PLAN = b"L", b"S", b"A", b"E", b"R", b"P"


def write_frame(pipe: BinaryIO, kind: bytes, data: bytes | memoryview) -> None:
    """Send one frame."""
    pipe.write(kind + struct.pack("<Q", len(data)))
    pipe.write(data)
    pipe.flush()


def read_frame(pipe: BinaryIO) -> tuple[bytes, bytes] | None:
    """The next (kind, data), or None when the other side is gone."""
    head = pipe.read(9)
    if len(head) < 9:
        return None
    (length,) = struct.unpack("<Q", head[1:])
    data = pipe.read(length)
    return (head[:1], data) if len(data) == length else None


class Failed(Exception):
    """The build stopped; the error frame says why."""


class Job:
    """One build: what the caller asked for, and the way back to it."""

    def __init__(self, order: dict[str, Any], model: bytes, pipe: BinaryIO) -> None:
        self.order = order
        self.model = model
        self.pipe = pipe
        self.lock = threading.Lock()

    def send(self, kind: bytes, content: Any) -> None:
        """Send a frame; `content` is bytes or becomes JSON."""
        data = content if isinstance(content, bytes | memoryview) else json.dumps(content).encode("utf-8", "replace")
        with self.lock:
            write_frame(self.pipe, kind, data)

    def fail(self, stage: str, message: str, **facts: Any) -> Failed:
        """Report why the build stopped."""
        self.send(ERROR, {"stage": stage, "message": message, **facts})
        return Failed(message)


def compile_job(job: Job, trt: Any) -> None:
    """Parse, configure and build; the engine's description and its plan go back as frames."""
    job.send(STAGE, "builder")
    logger = _logger(job, trt)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    job.send(STAGE, "parse")
    _parse(job, trt.OnnxParser(network, logger), network)
    job.send(STAGE, "profile")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = _progress(job, trt)
    _target(job, trt, config)
    _profiles(job, builder, network, config)
    job.send(STAGE, "build")
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if plan is None:
        raise job.fail("build", "")
    result = {"network_layers": network.num_layers, "seconds": seconds}
    if not hasattr(trt, "ComputeCapability"):
        result["inspector"] = _inspect(job, plan, trt, logger)
    job.send(RESULT, result)
    job.send(PLAN, memoryview(plan).cast("B"))


def _network_flags(trt: Any) -> int:
    """TensorRT 11 and RTX know only strongly typed networks; TensorRT 10 must be asked for one."""
    flag = getattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(job: Job, parser: Any, network: Any) -> None:
    path = job.order["path"]
    parsed = parser.parse(job.model, path) if path else parser.parse(job.model)
    if parser.num_errors or not parsed:
        error = parser.get_error(0) if parser.num_errors else None
        facts = {"node": error.node_name(), "op": error.node_operator()} if error else {}
        raise job.fail("parse", error.desc() if error else "", **facts)
    if network.num_outputs == 0:
        raise job.fail("parse", "The network has no outputs.")


def _target(job: Job, trt: Any, config: Any) -> None:
    """Compile for a GPU that need not be here; full TensorRT always compiles for the GPU of this machine."""
    target = job.order["target"]
    if hasattr(trt, "ComputeCapability"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)


def _profiles(job: Job, builder: Any, network: Any, config: Any) -> None:
    """A profile gives the shape of an input, or the values of one that TensorRT takes for a shape tensor."""
    ports = [network.get_input(index) for index in range(network.num_inputs)] if job.order["profiles"] else []
    sizes = {port.name for port in ports if port.is_shape_tensor}
    for number, shapes in enumerate(job.order["profiles"]):
        profile = builder.create_optimization_profile()
        for name, (low, opt, high) in shapes.items():
            (profile.set_shape_input if name in sizes else profile.set_shape)(name, low, opt, high)
        if config.add_optimization_profile(profile) < 0:
            raise job.fail("profile", f"TensorRT refuses profile {number}: {shapes}.")


def _inspect(job: Job, plan: Any, trt: Any, logger: Any) -> str:
    """Full TensorRT does not print its layers; its inspector tells them, on the GPU that built them."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise job.fail("build", "The engine was built, but the runtime of this machine cannot read it.")
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def _logger(job: Job, trt: Any) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            job.send(LOG, [severity.name, message])

    return Logger()


def _progress(job: Job, trt: Any) -> Any:
    class Progress(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            job.send(PROGRESS, [phase, 0, steps, parent])

        def step_complete(self, phase: str, step: int) -> bool:
            job.send(PROGRESS, [phase, step + 1, self.steps.get(phase, 0), ""])
            return True

        def phase_finish(self, phase: str) -> None:
            job.send(PROGRESS, [phase, self.steps.get(phase, 0), self.steps.get(phase, 0), ""])

    return Progress()


def _private_stdout() -> BinaryIO:
    """Standard output for frames alone: what C++ code prints goes to standard error."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe


def _under_control() -> None:
    """Let this process go down with the caller, before the caller when memory runs out, and without a core file."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


def _hold_the_line(pipe: BinaryIO) -> None:
    pipe.read(1)
    os._exit(3)


def _load_tensorrt() -> Any:
    """TensorRT, or the exception that its import raised."""
    try:
        return load_tensorrt()
    except Exception as error:
        return error


def main() -> int:
    """Read the job, build, and report; the exit status is 0 also for a build that failed with a message."""
    pipe = _private_stdout()
    _under_control()
    trt = _load_tensorrt()  # while the caller checks the model
    order = read_frame(sys.stdin.buffer)
    model = read_frame(sys.stdin.buffer)
    if order is None or model is None:
        return 2
    threading.Thread(target=_hold_the_line, args=(sys.stdin.buffer,), daemon=True).start()
    job = Job(json.loads(order[1]), model[1], pipe)
    del model
    try:
        if isinstance(trt, Exception):
            raise trt
        compile_job(job, trt)
    except Failed:
        pass
    except Exception as error:  # whatever it is, the caller gets it as a message
        job.send(ERROR, {"stage": "build", "message": f"{type(error).__name__}: {error}"})
    pipe.flush()
    os._exit(0)  # the lifeline thread still reads; a normal exit would wait for it


if __name__ == "__main__":
    raise SystemExit(main())
