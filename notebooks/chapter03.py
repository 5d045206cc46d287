"""Chapter 03, builder, runtime, context: what TensorRT says to a setting or a file, its pictures, its exercises."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
from IPython.display import HTML
from ipywidgets import VBox
from ml_dtypes import float8_e4m3fn

from trtlab import draw, trt
from trtlab.building import build
from trtlab.buildlog import read_engine
from trtlab.draw.frame import Picture, message
from trtlab.engine import Engine
from trtlab.errors import AssetError, BuildError
from trtlab.exercises import Answer, Exercise, whole_number
from trtlab.files import data_file
from trtlab.gpus import Gpu, check_target
from trtlab.gpus import gpu as find_gpu
from trtlab.messages import plain
from trtlab.models import resnet50
from trtlab.onnx_model import Model, parse, read_source
from trtlab.process import CompilerProcess
from trtlab.shapes import Shapes, read_shapes
from trtlab.tensorrt_choice import load_tensorrt
from trtlab.toys import toy
from trtlab.widgets import dropdown, explorer, table

_BUDGET = 2**30  # bytes, in 03.1


def sentence(message: str) -> str:
    """The first sentence of a message, without its error code and its position in the source."""
    return re.split(r"\.(?= ?[A-Z])", plain(message))[0]


def exercises() -> list[Exercise]:
    """03.1: how many contexts fit? 03.2: write a config."""
    return [
        Exercise(
            "03.1",
            (
                "Look at the first picture of the chapter: what does a context own, and what does the engine own?",
                "What is there once comes off the 1 GiB first.",
                "resnet.weight_bytes and resnet.activation_bytes are bytes; 1 GiB is 2**30 of them.",
            ),
            _contexts,
        ),
        Exercise(
            "03.2",
            (
                "num_compute_capabilities says how many targets there are; lab.gpu('RTX 3090').target names one.",
                "How many streams are there beside the main one, if there is one stream?",
                "The section about the plan made the log silent: which line was it?",
            ),
            _config,
        ),
    ]


def _contexts(answer: int) -> Answer:
    whole_number(answer)
    engine = build(resnet50().onnx(), shapes={"x": (1, 3, 224, 224)}, progress=False)
    weights, activations = engine.weight_bytes or 0, engine.activation_bytes or 1
    truth = (_BUDGET - weights) // activations
    if answer == truth:
        return True, f"Weights once, {weights / 2**20:.0f} MiB, and {truth} times {activations / 2**20:.1f} MiB."
    if answer == _BUDGET // (weights + activations):
        return False, "That would be so many engines: what does a second context bring with it?"
    if answer == _BUDGET // activations:
        return False, "There is something that is needed before the first context."
    needed = (weights + answer * activations) / 2**20
    if answer > truth:
        return False, f"{answer} contexts and the weights would take {needed:,.0f} MiB; there are 1,024."
    return False, f"{answer} contexts and the weights take {needed:,.0f} MiB: one more would still fit."


def _config(answer: Callable[[Any], None]) -> Answer:
    if not callable(answer):
        return False, f"The answer is a function of the config, not {type(answer).__name__}."
    trt = load_tensorrt()
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    config = builder.create_builder_config()
    answer(config)
    if config.num_compute_capabilities != 2:
        return False, f"There should be two targets, not {config.num_compute_capabilities}."
    wanted = {trt.ComputeCapability.SM86, trt.ComputeCapability.SM120}
    if {config.get_compute_capability(index) for index in range(2)} != wanted:
        return False, "The two targets are not those of the two cards."
    if config.max_aux_streams != 0:
        return False, "TensorRT may still add streams to the main one."
    if config.profiling_verbosity != trt.ProfilingVerbosity.NONE:
        return False, "The log would still tell the layers."
    return True, "Two cards, one stream, a silent log."


def products() -> onnx.ModelProto:
    """Three matrix products side by side, in FP32."""
    return toy(
        """three (float[1,512,256] x) => (float[1,512,256] q, float[1,512,256] k, float[1,512,256] v) {
        q = MatMul(x, wq)   k = MatMul(x, wk)   v = MatMul(x, wv)
        }""",
        wq=(256, 256), wk=(256, 256), wv=(256, 256),
    )  # fmt: skip


def fp8_product() -> onnx.ModelProto:
    """A matrix product in FP8, a type that GPUs have from SM89 on."""
    weights = (np.arange(256 * 256).reshape(256, 256) % 17 - 8).astype(float8_e4m3fn)
    return toy(
        """fp8 (float16[64,256] x) => (float16[64,256] y) {
        xq = QuantizeLinear(x, s, z)   xd = DequantizeLinear(xq, s)   wd = DequantizeLinear(w8, s)   y = MatMul(xd, wd)
        }""",
        w8=weights, s=np.float16(0.02), z=np.zeros((), float8_e4m3fn),
    )  # fmt: skip


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

    def verdict(self, default: Trial) -> str:
        """What the setting did beside a default build: works here, refused, accepted without effect, needs a GPU.

        It is refused when there is no engine, or when TensorRT builds and complains of the setting.
        """
        if "CUDA_SUCCESS" in self.said:
            return "needs a GPU"
        if self.engine is None or self.said != default.said:
            return "refused"
        return "works here" if self.engine != default.engine else "accepted without effect"


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


# What it is, a line that sets it, the verdict of TensorRT-RTX 1.7, and what NVIDIA says of full TensorRT.
SETTINGS = (
    ("workspace size", "config.max_workspace_size = 1 << 30", "refused", "gone in 8.3+: set_memory_pool_limit"),
    ("precision mode", "config.set_flag(trt.BuilderFlag.FP16)", "refused", "gone in 11: types in the model"),
    ("calibrator", "config.int8_calibrator = None", "refused", "gone in 11: Q/DQ nodes"),
    ("version compatible", "config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)", "refused",
     "since 8.6: later versions load it"),
    ("several generations", "config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS",
     "refused", "since 8.6: Ampere and later"),
    ("for Windows", "config.runtime_platform = trt.RuntimePlatform.WINDOWS_AMD64", "refused",
     "since 10.3: Linux builds for Windows"),
    ("refit", "config.set_flag(trt.BuilderFlag.REFIT)", "needs a GPU", "weights can be exchanged"),
    ("plan without weights", "config.set_flag(trt.BuilderFlag.STRIP_PLAN)", "needs a GPU",
     "since 10: weights come at load time"),
    ("optimisation level", "config.builder_optimization_level = 5", "accepted without effect",
     "longer search for kernels"),
    ("timing cache", 'config.set_timing_cache(config.create_timing_cache(b""), False)', "accepted without effect",
     "remembers measured kernels"),
    ("streams", "config.max_aux_streams = 0", "works here", "since 8.6"),
    ("what log and inspector tell", "config.profiling_verbosity = trt.ProfilingVerbosity.NONE", "works here",
     "since 8.0"),
)  # fmt: skip


def settings(model: Model, gpu: str | None) -> list[tuple[str, str, str, str]]:
    """A row for each of SETTINGS, tried: what it is, its name in the API, the verdict found here, full TensorRT's."""
    default, *trials = try_settings(model, ["", *[line for _, line, _, _ in SETTINGS]], gpu=gpu)
    name = re.compile(r"BuilderFlag\.\w+|set_(?!flag)\w+|\w+(?= =)")
    return [
        (what, name.findall(line)[0], trial.verdict(default), full)
        for (what, line, _, full), trial in zip(SETTINGS, trials, strict=True)
    ]


def folded(summary: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> HTML:
    """A table that opens with a click."""
    return HTML(f"<details><summary>{summary}</summary>{table(columns, rows).data}</details>")


def outputs(engine: Any) -> list[str]:
    """The names of the outputs of TensorRT's own ICudaEngine."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]


def inside(cases: Mapping[str, tuple[int, Engine]]) -> HTML:
    """A table of {name: (bytes of the ONNX model, its engine)}: what the plan holds of it."""
    rows = [
        (name, *(round(size / 2**20, 2) for size in (model, engine.weight_bytes or 0, len(engine.plan_bytes()))),
         len(engine.layers))
        for name, (model, engine) in cases.items()
    ]  # fmt: skip
    return table(["", "ONNX, MiB", "weights, MiB", "plan, MiB", "layers"], rows)


TARGETS = {
    "no list": "",
    "RTX 4090": "SM89",
    "RTX 3090, 4090, 5090": "SM86 SM89 SM120",
    "RTX 4090 and T4": "SM89 SM75",
    "T4": "SM75",
}


def target_lines(targets: str) -> str:
    """The lines that set a list of targets such as "SM86 SM89"."""
    names = targets.split()
    lines = [f"config.set_compute_capability(trt.ComputeCapability.{name}, {n})" for n, name in enumerate(names)]
    return "\n".join([f"config.num_compute_capabilities = {len(names)}", *lines])


def targets_picture(model: Model, targets: str, shapes: Any = None) -> Picture:
    """Build `model` for an RTX 4090 and for a choice of TARGETS, and draw the sizes of both plans."""
    default, mine = try_settings(model, ["", target_lines(TARGETS[targets])], shapes, "RTX 4090")
    if mine.engine is None or default.engine is None:
        return message("TensorRT refuses", [sentence(mine.said or default.said)])
    plans = {"RTX 4090 alone": default.plan_bytes or 0, targets: mine.plan_bytes or 0}
    times = plans[targets] / plans["RTX 4090 alone"]
    kernels = f"{len(default.engine.kernels)} and {len(mine.engine.kernels)} kernels"
    sizes = {name: size / 2**20 for name, size in plans.items()}
    return draw.bars(sizes, f"{kernels}; the second plan has {times:.1f} times the size", "plan, MiB", "{:.2f}")


def targets_explorer(networks: Mapping[str, tuple[Model, Any]]) -> VBox:
    """Controls for a network, {its name: (model, shapes)}, and its targets; each change runs the real compiler."""
    return explorer(
        lambda network, targets: targets_picture(networks[network][0], targets, networks[network][1]),
        network=dropdown("Network", list(networks)),
        targets=dropdown("Targets", list(TARGETS)),
    )


READ = "2026-11-22"  # the day on which the sources were read


def compatibility() -> pd.DataFrame:
    """One row a release: compute capabilities, CUDA, driver, framework, and the source of each row.

    An empty cell was not found in a public source. `evidence` is quoted or measured (here, without a GPU); `source`
    names the pages, `address` holds their URLs, read on the day `READ`.
    """
    with data_file("compatibility.csv").open(encoding="utf-8", newline="") as file:
        return pd.DataFrame(list(csv.DictReader(file))).set_index("software")


def supports(software: str, card: str | Gpu) -> bool:
    """True when that release, such as "TensorRT 10.0", runs on the GPU, by its compute capability in the table.

    Raises AssetError for a release that is not in the table, or a GPU that is not known.
    """
    releases = compatibility()
    if software not in releases.index:
        raise AssetError(f"'{software}' is not in the table.", fix=f"choose one of {', '.join(releases.index)}.")
    capability = (card if isinstance(card, Gpu) else find_gpu(card)).compute_capability
    words = str(releases.loc[software, "compute_capability"]).split("(")[0]
    listed = re.findall(r"\d+\.\d", words)
    if " to " in words or "and later" in words:
        return _number(listed[0]) <= _number(capability) <= _number(listed[1] if " to " in words else "99.0")
    return capability in listed


def _number(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))
