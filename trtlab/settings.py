"""What does a setting of the builder change? Each is tried in a compiler process of its own."""

from __future__ import annotations

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
from typing import TYPE_CHECKING, Any

from trtlab import compiler
from trtlab.buildlog import read_build_log
from trtlab.engine import Engine
from trtlab.gpus import Gpu, check_target
from trtlab.machine import load_tensorrt
from trtlab.onnx_model import parse, read_source
from trtlab.profiles import Shapes, read_shapes

if TYPE_CHECKING:
    from trtlab.onnx_model import Model

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
    command = [sys.executable, "-P", "-m", "trtlab.settings"]
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
        described = Engine.from_inspector(result["inspector"])
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


def main() -> int:
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


if __name__ == "__main__":
    raise SystemExit(main())
