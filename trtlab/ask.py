"""What does TensorRT say to a setting of the builder, to a plan file, to a profile? Asked in compiler processes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from trtlab.buildlog import read_engine
from trtlab.engine import Engine
from trtlab.errors import AssetError, BuildError
from trtlab.gpus import Gpu, check_target
from trtlab.messages import plain
from trtlab.onnx_model import Model, parse, read_source
from trtlab.process import CompilerProcess, Transcript
from trtlab.shapes import Shapes, read_shapes
from trtlab.tensorrt_choice import load_tensorrt

# On a machine without a GPU these follow every other error.
_NOISE = ("cudaError 35", "catchCudaError", "[checkMacros")


@dataclass(frozen=True)
class Trial:
    """One build with a setting: the engine and the size of its plan (None where TensorRT or Python refused).

    `said` is the first thing that TensorRT warned of or failed with, "" when there is none.
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


def try_setting(
    model: Model, setting: str = "", shapes: Shapes = None, gpu: str | float | Gpu | None = None, *,
    time_limit: float = 120,
) -> Trial:  # fmt: skip
    """Build `model` after running `setting`, lines of Python that see trt, config, builder and network.

    They run after the target and the profiles are set, in a process that ends with the build. What fails is part of the
    answer: nothing is raised but for a model, shapes or GPU that cannot be read. Nothing is cached. `time_limit` is in
    seconds.
    """
    source = read_source(model)
    parse(source)
    order = {"task": "build", "target": check_target(gpu, load_tensorrt()), "profiles": read_shapes(shapes),
             "path": str(source.path) if source.external else None, "setting": setting}  # fmt: skip
    with CompilerProcess() as process:
        try:
            told = process.run(order, source.path or source.data, time_limit)
        except BuildError as error:
            return Trial(setting, None, None, error.message)
    complaints = (*told.spoken("ERROR"), *told.spoken("WARNING"))
    said = next((message for message in complaints if not any(noise in message for noise in _NOISE)), "")
    if told.plan is None:
        return Trial(setting, None, None, (told.error or {}).get("message") or said)
    return Trial(setting, read_engine(told.messages, told.facts), len(told.plan), said)


def try_settings(
    model: Model, settings: Sequence[str], shapes: Shapes = None, gpu: str | float | Gpu | None = None
) -> list[Trial]:
    """`try_setting` for each of `settings`, two at a time, in their order."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda setting: try_setting(model, setting, shapes, gpu), settings))


# What the runtime says of a plan, and the state it means; the first that fits counts.
_STATES = {
    "empty memory buffer": "empty",
    "magicTag": "not an engine",
    "minBufferSize": "cut",
    "cursor < blobSize": "cut",
    "header.size == blobSize": "cut",
    "Version tag does not match": "another version",
    "cudaError 35": "needs a GPU",  # its header is in order, and more is read on an NVIDIA GPU only
}


@dataclass(frozen=True)
class PlanCheck:
    """What the runtime made of a plan of `nbytes`: a state, and what TensorRT said.

    States: loads, needs a GPU, empty, not an engine, cut, another version, refused, crashed.
    """

    name: str
    nbytes: int
    state: str
    said: str


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
    with CompilerProcess() as process:
        try:
            told = process.run({"task": "deserialize"}, plan, time_limit)
        except BuildError as error:
            return PlanCheck(name, len(plan), "refused" if error.stage == "time" else "crashed", error.message)
    said = [message for message in told.spoken("ERROR") if not message.startswith("[checkMacros")]
    known = [(state, message) for words, state in _STATES.items() for message in said if words in message]
    state, words = ("loads", "") if told.facts.get("loaded") else (*known, ("refused", "".join(said[:1])))[0]
    return PlanCheck(name, len(plan), state, words)


OUTCOMES = ("raises", "returns -1", "no engine", "a line in the log", "not a word")  # the last two with an engine


@dataclass(frozen=True)
class ProfileResponse:
    """What a call raised, what add_optimization_profile returned, whether there is an engine, and what the log said."""

    raised: str
    returned: tuple[int, ...]
    built: bool
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def outcome(self) -> str:
        """One of OUTCOMES."""
        signs = (self.raised, -1 in self.returned, not self.built, self.warnings, True)
        return next(outcome for outcome, sign in zip(OUTCOMES, signs, strict=True) if sign)

    @property
    def refused(self) -> bool:
        """True when a script that looks at exceptions, at -1 and at None has no engine."""
        return self.outcome in OUTCOMES[:3]

    def __str__(self) -> str:
        said = plain(self.errors[0]) if self.errors else "no reason given"
        after = "; the build goes on without this profile" if self.built else ""
        words = (
            f"set_shape raises {self.raised}", f"add_optimization_profile returns -1: {said}{after}",
            f"the build returns None: {said}", f"builds; a warning: {plain(''.join(self.warnings[:1]))}",
            "builds, says nothing",
        )  # fmt: skip
        return words[OUTCOMES.index(self.outcome)]


def try_profiles(cases: Sequence[tuple[onnx.ModelProto, Any]]) -> list[ProfileResponse]:
    """TensorRT's response to each (model, shapes), for SM89; `shapes` goes to set_shape unchecked, whatever it is.

    Inputs that TensorRT takes for shape tensors get their values. Raises BuildError when TensorRT cannot be asked.
    """
    found: list[ProfileResponse] = []
    while len(found) < len(cases):
        with CompilerProcess() as process:
            for model, shapes in cases[len(found) :]:
                profiles = [shapes] if isinstance(shapes, dict) else shapes or []
                order = {"task": "build", "target": "SM89", "profiles": profiles, "tolerant": True}
                try:
                    found.append(_response(process.run(order, model.SerializeToString(), 120)))
                except BuildError as error:
                    if error.stage == "cancelled" or process.transcript.stage == "start":
                        raise
                    found.append(ProfileResponse("", (), False, (error.message,), ()))
                    break  # the process is gone
    return found


def _response(told: Transcript) -> ProfileResponse:
    raised = told.facts.get("raised", "").split(" The following")[0]
    own = [told.error["message"]] if told.error and told.error["message"] else []
    errors = (*own, *(message for message in told.spoken("ERROR") if "catchCudaError" not in message))
    warnings = tuple(message for message in told.spoken("WARNING") if message.startswith("Profile k"))
    return ProfileResponse(raised, tuple(told.facts.get("returned", ())), told.plan is not None, errors, warnings)
