"""What does a setting of the builder change? Each is tried in a compiler process of its own."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx

from trtlab import compiler
from trtlab.buildlog import read_build_log, read_inspector
from trtlab.engine import Engine
from trtlab.errors import AssetError, BuildError
from trtlab.gpus import Gpu, check_target
from trtlab.machine import load_tensorrt
from trtlab.messages import plain
from trtlab.onnx_model import Model, parse, read_source
from trtlab.shapes import Shapes, read_shapes

_NOISE = "cudaError 35"  # "no driver": on a machine without a GPU it follows every other error


@dataclass(frozen=True)
class Trial:
    """One build with a setting: the engine (None where TensorRT or Python refused) and the first complaint.

    `plan_bytes` is the size of the serialized engine, `said` what TensorRT warned of or failed with, "" when nothing.
    """

    setting: str
    engine: Engine | None = field(repr=False)
    plan_bytes: int | None
    said: str

    @property
    def streams(self) -> int:
        """How many CUDA streams the engine's kernels run on; 0 without an engine or its layers."""
        return len({layer.stream for layer in self.engine.kernels}) if self.engine else 0

    def differs(self, other: Trial) -> bool:
        """True when the other trial made another engine: other layers, memory figures or no engine at all."""
        return self.engine != other.engine

    def _repr_html_(self) -> str:
        found = "no engine" if self.engine is None else f"{len(self.engine.kernels)} kernels, {self.plan_bytes:,} bytes"
        return f"<code>{escape(self.setting or 'the default')}</code>: {found}. {escape(self.said)}"


def try_setting(
    model: Model,
    setting: str = "",
    shapes: Shapes = None,
    gpu: str | float | Gpu | None = None,
    *,
    time_limit: float = 120,
) -> Trial:
    """Build `model` after running `setting`, lines of Python that see trt, config, builder and network.

    They run after the target and the profiles are set, in a process that ends with the build, so that neither a crash
    nor a build that spoils the next one reaches the caller. What fails is part of the answer: nothing is raised but
    for a model, shapes or GPU that cannot be read. Nothing is cached. `time_limit` is in seconds.
    """
    source, trt = read_source(model), load_tensorrt()
    parse(source)
    order = {
        "target": check_target(gpu, trt),
        "profiles": read_shapes(shapes),
        "path": str(source.path) if source.external else None,
        "setting": setting,
    }
    stdin = io.BytesIO()
    compiler.write_frame(stdin, b"J", json.dumps(order).encode())
    compiler.write_frame(stdin, b"M", source.data)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (_HOME, os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-P", "-m", "trtlab.ask", "setting"]
    try:
        done = subprocess.run(
            command, input=stdin.getvalue(), capture_output=True, timeout=time_limit, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return Trial(setting, None, None, f"did not finish within {time_limit:g} s")
    return _trial(setting, done.stdout, done.returncode)


def try_settings(
    model: Model, settings: Sequence[str], shapes: Shapes = None, gpu: str | float | Gpu | None = None
) -> list[Trial]:
    """`try_setting` for each of `settings`, two at a time, in their order."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda setting: try_setting(model, setting, shapes, gpu), settings))


_HOME = str(Path(__file__).resolve().parent.parent)


def _trial(setting: str, output: bytes, status: int) -> Trial:
    frames: dict[bytes, bytes] = {}
    messages: list[tuple[str, str]] = []
    pipe = io.BytesIO(output)
    while (frame := compiler.read_frame(pipe)) is not None:
        if frame[0] == compiler.LOG:
            severity, message = json.loads(frame[1])
            messages.append((severity, message))
        else:
            frames[frame[0]] = frame[1]
    said = _complaint(messages)
    if compiler.PLAN not in frames:
        error = json.loads(frames.get(compiler.ERROR, b"{}")).get("message", "")
        return Trial(setting, None, None, error or said or f"the process ended with status {status}")
    engine, result = read_build_log(message for _, message in messages), json.loads(frames[compiler.RESULT])
    if "inspector" in result:
        described = read_inspector(result["inspector"])
        engine = replace(engine, layers=described.layers, ports=described.ports)
    engine = replace(engine, network_layers=result["network_layers"])
    return Trial(setting, engine, len(frames[compiler.PLAN]), said)


def _complaint(messages: Sequence[tuple[str, str]]) -> str:
    """The first error, else the first warning."""
    for wanted in ("ERROR", "WARNING"):
        for severity, message in messages:
            if severity.endswith(wanted) and _NOISE not in message:
                return message
    return ""


def _with_setting(trt: Any, setting: str) -> Any:
    """TensorRT with a Builder that runs `setting` before it builds."""

    class Builder(trt.Builder):
        def build_serialized_network(self, network: Any, config: Any) -> Any:
            exec(
                compile(setting, "setting", "exec"), {"trt": trt, "config": config, "builder": self, "network": network}
            )
            return super().build_serialized_network(network, config)

    return SimpleNamespace(**{**{name: getattr(trt, name) for name in dir(trt)}, "Builder": Builder})


def settings_main() -> int:
    """Read a job, build with its setting, and report in frames; the exit status is 0 also for a refusal."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what C++ code prints must not get between the frames
    order, model = compiler.read_frame(sys.stdin.buffer), compiler.read_frame(sys.stdin.buffer)
    if order is None or model is None:
        return 2
    job = compiler.Job(json.loads(order[1]), model[1], pipe)
    try:
        compiler.compile_job(job, _with_setting(load_tensorrt(), job.order["setting"]))
    except compiler.Failed:
        pass
    except Exception as error:  # whatever it is, it is the answer
        job.send(compiler.ERROR, {"message": f"{type(error).__name__}: {error}"})
    pipe.flush()
    return 0


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

_NOISE_PLAN_FILE = "[checkMacros"  # without a GPU it follows every other error
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
    command = [sys.executable, "-P", "-m", "trtlab.ask", "plan"]
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
            if key in message and not message.startswith(_NOISE_PLAN_FILE):
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


def plan_main() -> int:
    """Deserialize standard input and print [loaded, the errors]."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    trt = load_tensorrt()
    logger = _logger(trt)
    engine = trt.Runtime(logger).deserialize_cuda_engine(sys.stdin.buffer.read())
    json.dump([engine is not None, logger.errors], answers)
    answers.flush()
    return 0


_SECONDS = 120
OUTCOMES = ("raises", "returns -1", "no engine", "a line in the log", "not a word")  # the last two with an engine


@dataclass(frozen=True)
class Answer:
    """What a call raised, what add_optimization_profile returned, whether there is an engine, and what the log said."""

    raised: str
    returned: tuple[int, ...]
    built: bool
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def silent(self) -> bool:
        """True when there is an engine, and neither an exception nor a -1 nor a warning about the profile."""
        return self.outcome == OUTCOMES[4]

    @property
    def refused(self) -> bool:
        """True when a script that looks at exceptions, at -1 and at None has no engine."""
        return bool(self.raised) or -1 in self.returned or not self.built

    @property
    def outcome(self) -> str:
        """One of OUTCOMES."""
        if self.raised:
            return OUTCOMES[0]
        if -1 in self.returned:
            return OUTCOMES[1]
        if not self.built:
            return OUTCOMES[2]
        return OUTCOMES[3] if self.warnings else OUTCOMES[4]

    def __str__(self) -> str:
        if self.raised:
            return f"set_shape raises {self.raised}"
        if -1 in self.returned:
            after = "; the build goes on without this profile" if self.built else ""
            return f"add_optimization_profile returns -1: {self._error}{after}"
        if not self.built:
            return f"the build returns None: {self._error}"
        return f"builds; a warning: {plain(self.warnings[0])}" if self.warnings else "builds, says nothing"

    @property
    def _error(self) -> str:
        return plain(self.errors[0]) if self.errors else "no reason given"


def answers(cases: Sequence[tuple[onnx.ModelProto, Any]]) -> list[Answer]:
    """TensorRT's answer to each (model, shapes), for SM89; `shapes` goes to set_shape unchecked, whatever it is.

    Inputs that TensorRT takes for shape tensors get their values. Raises BuildError when TensorRT cannot be asked.
    """
    jobs = [[base64.b64encode(model.SerializeToString()).decode(), shapes] for model, shapes in cases]
    done = subprocess.run(
        [sys.executable, "-m", "trtlab.ask", "profile"], input=json.dumps(jobs), capture_output=True, text=True,
        timeout=_SECONDS, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    if len(lines) != len(jobs):
        raise BuildError("TensorRT cannot be asked here.", fix="see 'python -m trtlab doctor'.", log=done.stderr)
    found = []
    for line in lines:
        told = json.loads(line)
        lists = (tuple(told[name]) for name in ("returned", "errors", "warnings"))
        returned, errors, warnings = lists
        found.append(Answer(told["raised"], returned, told["built"], errors, warnings))
    return found


def _answer(model: bytes, shapes: Any, trt: Any) -> dict[str, Any]:
    """Build as chapter 06 does, and keep what each call says."""
    errors: list[str] = []
    warnings: list[str] = []

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and "catchCudaError" not in message:
                errors.append(message)
            elif severity == trt.ILogger.WARNING and message.startswith("Profile k"):
                warnings.append(message)

    builder = trt.Builder(Logger())
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, Logger())
    if not parser.parse(model):
        errors[:0] = [parser.get_error(0).desc()]
        return {"raised": "", "returned": [], "built": False, "errors": errors, "warnings": warnings}
    ports = [network.get_input(index) for index in range(network.num_inputs)]
    values = {port.name for port in ports if port.is_shape_tensor}
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    raised, returned = "", []
    for given in [] if shapes is None else [shapes] if isinstance(shapes, dict) else shapes:
        profile = builder.create_optimization_profile()
        for name, sizes in given.items():
            try:
                (profile.set_shape_input if name in values else profile.set_shape)(name, *_tuples(sizes))
            except (TypeError, RuntimeError) as error:
                raised = raised or f"{type(error).__name__}: {str(error).splitlines()[0].split(' The following')[0]}"
        returned.append(config.add_optimization_profile(profile))
    plan = builder.build_serialized_network(network, config)
    return {
        "raised": raised, "returned": returned, "built": plan is not None, "errors": errors, "warnings": warnings,
    }  # fmt: skip


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def answers_main() -> int:
    """Answer every case of standard input with a line of JSON."""
    import tensorrt_rtx as trt

    out = os.dup(1)
    os.dup2(2, 1)  # what C++ code prints
    for model, shapes in json.load(sys.stdin):
        child = os.fork()
        if child == 0:
            os.write(out, (json.dumps(_answer(base64.b64decode(model), shapes, trt)) + "\n").encode())
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            died: dict[str, Any] = {"raised": "", "returned": [], "built": False, "warnings": []}
            os.write(out, (json.dumps({**died, "errors": ["the process died"]}) + "\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit({"setting": settings_main, "plan": plan_main, "profile": answers_main}[sys.argv[1]]())
