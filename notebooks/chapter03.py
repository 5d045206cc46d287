"""The exercises, diagram, bars, widget and version table of chapter 03, builder, runtime, context."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pandas as pd
from ipywidgets import VBox

from trtlab.building import build
from trtlab.buildlog import read_engine
from trtlab.draw.frame import MARGIN, Card, Picture, clean, fit, message, style, width_of
from trtlab.draw.palette import KINDS, MUTED, TEXT, UNASKED
from trtlab.engine import Engine
from trtlab.errors import AssetError, BuildError
from trtlab.exercises import Answer, Exercise, whole_number
from trtlab.files import data_file
from trtlab.gpus import Gpu, check_target
from trtlab.gpus import gpu as find_gpu
from trtlab.messages import plain
from trtlab.models import efficientnet_lite0
from trtlab.onnx_model import Model, parse, read_source
from trtlab.process import CompilerProcess
from trtlab.shapes import Shapes, read_shapes
from trtlab.tables import mib, number
from trtlab.tensorrt_choice import load_tensorrt
from trtlab.toys import toy
from trtlab.widgets import dropdown, explorer

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
                "Take the weights off the 1 GiB once. What is left is for activations.",
                "batch8.weight_bytes and batch8.activation_bytes are bytes; 1 GiB is 2**30 of them.",
            ),
            _contexts,
        ),
        Exercise(
            "03.2",
            (
                "num_compute_capabilities says how many targets there are, set_compute_capability(target, index) each.",
                "max_aux_streams counts the streams beside the main one.",
                "The section on verbosity names the three levels; lab.gpu('RTX 3090').target is a build target.",
            ),
            _config,
        ),
    ]


def _contexts(answer: int) -> Answer:
    whole_number(answer)
    engine = build(efficientnet_lite0().onnx(), shapes={"x": (8, 3, 224, 224)}, progress=False)
    weights, activations = engine.weight_bytes or 0, engine.activation_bytes or 1
    truth = (_BUDGET - weights) // activations
    if answer == truth:
        return True, f"Weights once, {weights / 2**20:.0f} MiB, and {truth} times {activations / 2**20:.0f} MiB."
    if answer == _BUDGET // (weights + activations):
        return False, "That would be so many engines: a context brings no weights of its own."
    needed = (weights + answer * activations) / 2**20
    if answer > truth:
        return False, f"{answer} contexts and the weights would take {needed:,.0f} MiB; there are 1,024."
    return False, f"{answer} contexts and the weights take {needed:,.0f} MiB: one more would still fit."


_CHECKS = {
    "config.num_compute_capabilities == 2": "There should be two targets.",
    "{config.get_compute_capability(i) for i in range(2)} == "
    "{trt.ComputeCapability.SM86, trt.ComputeCapability.SM120}": "The two targets are not those of the two cards.",
    "config.max_aux_streams == 0": "TensorRT may still add streams to the main one.",
    "config.profiling_verbosity == trt.ProfilingVerbosity.NONE": "The layers would still tell their names.",
}


def _config(answer: str) -> Answer:
    if not isinstance(answer, str):
        return False, f"The answer is text with lines of Python, not {type(answer).__name__}."
    checks = "\n".join(f"assert {check}, {says!r}" for check, says in _CHECKS.items())
    trial = try_setting(_products(), f"{answer}\n{checks}", gpu="RTX 4090")
    if trial.engine is None:
        return False, f"{trial.said.removeprefix('AssertionError: ')}"
    return True, f"It builds, in {trial.plan_bytes:,} bytes for both cards."


def _products() -> onnx.ModelProto:
    return toy(
        "two (float[64,256] x) => (float[64,256] a, float[64,256] b) { a = MatMul(x, w1) b = MatMul(x, w2) }",
        w1=(256, 256), w2=(256, 256),
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


TARGETS = {
    "RTX 4090": ("SM89",),
    "RTX 3090, 4090, 5090": ("SM86", "SM89", "SM120"),
    "RTX 4090 and T4": ("SM89", "SM75"),
    "T4": ("SM75",),
}

STREAMS = ("any", "1", "2", "3")
VERBOSITIES = ("DETAILED", "LAYER_NAMES_ONLY", "NONE")


def setting_lines(targets: tuple[str, ...], streams: str = "any", verbosity: str = "DETAILED") -> str:
    """The lines that one writes for it: build targets such as ("SM86", "SM89"), streams in all, verbosity."""
    lines = [f"config.num_compute_capabilities = {len(targets)}"]
    lines += [
        f"config.set_compute_capability(trt.ComputeCapability.{target}, {index})"
        for index, target in enumerate(targets)
    ]
    if streams != "any":
        lines.append(f"config.max_aux_streams = {int(streams) - 1}")
    return "\n".join([*lines, f"config.profiling_verbosity = trt.ProfilingVerbosity.{verbosity}"])


def settings_picture(model: Model, targets: str, streams: str, verbosity: str, shapes: Any = None) -> Picture:
    """Build `model` for an RTX 4090 with the defaults and with the choices, and draw both engines."""
    chosen = setting_lines(TARGETS[targets], streams, verbosity)
    default, mine = try_settings(model, [setting_lines(TARGETS["RTX 4090"]), chosen], shapes, "RTX 4090")
    streams = "" if streams == "any" else f", at most {streams} stream{'s' * (streams != '1')}"
    name = f"{targets}{streams}, {verbosity}"
    title = "TensorRT refuses" if mine.engine is None else "TensorRT refuses the default, and builds this"
    if mine.plan_bytes and default.plan_bytes:
        title = f"The plan weighs {mine.plan_bytes / default.plan_bytes:.1f} times the default one"
    return compared_builds({"the default: RTX 4090, DETAILED": default, name: mine}, title)


def settings_explorer(networks: Mapping[str, Model], shapes: Mapping[str, Any]) -> VBox:
    """Controls for network, targets, streams and verbosity; each change runs the real compiler twice."""
    return explorer(
        lambda network, **choices: settings_picture(networks[network], **choices, shapes=shapes.get(network)),
        network=dropdown("Network", list(networks)),
        targets=dropdown("Targets", list(TARGETS)),
        streams=dropdown("Streams", STREAMS),
        verbosity=dropdown("Verbosity", VERBOSITIES),
    )


WIDTH = 12.6
_ANYWHERE, _GPU, _YOURS = ("#E4F2EE", "#13806B"), ("#ECE8F8", "#4B37A8"), ("#F3F4F6", "#3F5D7A")
_LINE, _PITCH = 0.25, 1.72


class _Part(NamedTuple):
    """A box: its name, TensorRT's class, what it owns, and the rule for threads."""

    name: str
    code: str
    owns: tuple[str, ...]
    rule: str


_BUILDER = _Part(
    "Builder", "trt.Builder",
    ("network: the model's layers and weights", "config: targets, memory pools, streams, flags",
     "profiles: min, opt, max shapes", "logger, progress monitor, error recorder"),
    "one thread; gone when the plan is written",
)  # fmt: skip

_RUNTIME = _Part(
    "Runtime", "trt.Runtime", ("logger, error recorder", "allocator of GPU memory"), "outlives its engines"
)


def ownership(engine: Engine | None = None, contexts: int = 2) -> Picture:
    """Draw what builder, engine and contexts own; with an `engine`, in MiB, for so many `contexts` (1 to 3)."""
    contexts = min(max(contexts, 1), 3)
    weights, activations = (engine.weight_bytes, engine.activation_bytes) if engine else (None, None)
    sizes = [f" {mib(size)}" if size else "" for size in (weights, activations)]
    one = _Part(
        "Engine", "trt.ICudaEngine",
        (f"weights{sizes[0]}, once on the GPU", "kernels, in order", "names, shapes and types of inputs, outputs",
         "profiles"),
        "read only: all contexts and threads share it",
    )  # fmt: skip
    many = _Part(
        "Context",
        "trt.IExecutionContext",
        ("the shapes and the profile of this run", f"activations{sizes[1]}", "addresses of your buffers"),
        "one thread and one stream at a time",
    )
    middle = 1.1 + _PITCH * max(contexts, 2) / 2
    runtime, engines, height = middle - 1.05, middle + 0.72, 2 * middle - 0.1
    with style():
        card = Card(WIDTH, height + 0.05)
        card.title(_title(weights, activations, contexts), 17)
        right = _box(card, 0.3, middle, 3.75, _BUILDER, _ANYWHERE)
        _arrow(card, (right, middle), (5.05, runtime))
        card.text(right + 0.36, middle - 0.72, "plan", 11, weight="bold", ha="center", gid="plan")
        right = _box(card, 5.05, runtime, 3.5, _RUNTIME, _GPU)
        _arrow(card, (6.8, runtime + 0.6), (6.8, engines - 0.88))
        right = _box(card, 5.05, engines, 3.5, one, _GPU)
        for index in range(contexts):
            y = middle + (index + 0.5 - contexts / 2) * _PITCH
            named = many._replace(name=f"Context {index + 1}" if contexts > 1 else many.name)
            _box(card, 9.2, y, 3.1, named, _GPU)
            _arrow(card, (right, engines), (9.2, y))
        card.box(MARGIN, height - 0.7, WIDTH - 2 * MARGIN, 0.45, _YOURS[0], radius=0.1, zorder=1)
        yours = "You own the buffers of inputs and outputs, the CUDA streams, and the file with the plan."
        card.text(WIDTH / 2, height - 0.47, yours, 11, color=_YOURS[1], ha="center", gid="yours")
    return card.figure


def _title(weights: int | None, activations: int | None, contexts: int) -> str:
    if not weights or not activations:
        return "The plan is handed over once; weights are shared, activations are not"
    total = number((weights + contexts * activations) / 2**20)
    times = f"{contexts} × " if contexts > 1 else ""
    return f"Weights once, activations once a context: {mib(weights)} + {times}{mib(activations)} = {total} MiB"


def _box(card: Card, x: float, middle: float, width: float, part: _Part, colors: tuple[str, str]) -> float:
    """A box around `middle`; returns where its right edge is."""
    fill, ink = colors
    high = 0.78 + _LINE * len(part.owns)
    y = middle - high / 2
    card.box(x, y, width, high, fill, edge=ink, line=1.6, radius=0.1, zorder=3)
    card.text(x + 0.15, y + 0.24, part.name, 13, weight="bold", color=ink, gid=f"part:{part.name}")
    code = card.text(x + width - 0.15, y + 0.24, part.code, 8.5, color=ink, ha="right", gid="code")
    code.set_fontfamily("DejaVu Sans Mono")
    for row, words in enumerate(part.owns):
        card.text(x + 0.15, y + 0.52 + _LINE * row, fit(words, width - 0.25, 10), 10, color=TEXT, gid="owns")
    rule = fit(part.rule, width - 0.25, 9.5)
    card.text(x + 0.15, y + high - 0.16, rule, 9.5, color=MUTED, gid="rule")
    return x + width


def _arrow(card: Card, tail: tuple[float, float], head: tuple[float, float]) -> None:
    card.axes.annotate(
        "", xy=head, xytext=tail, zorder=2,
        arrowprops={"arrowstyle": "-|>,head_length=0.5,head_width=0.25", "color": TEXT, "lw": 1.6, "shrinkA": 0,
                    "shrinkB": 0},
    )  # fmt: skip


_COLUMNS = ("plan, MiB", "kernels", "streams", "activations, MiB")


def compared_builds(trials: Mapping[str, Trial], title: str) -> Picture:
    """Draw what `try_setting` returned, {what was set: trial}, a row each; a refusal shows TensorRT's words."""
    if not trials:
        return message("There are no builds to draw", ["Give {'the default': chapter03.try_setting(model)}."])
    figures = [_figures(trial) for trial in trials.values()]
    largest = [max(column) or 1 for column in zip((0,) * 4, *filter(None, figures), strict=True)]
    with style():
        card = Card(11.0, 1.3 + 0.42 * len(trials))
        card.title(title, 14)
        left = MARGIN + max(width_of(clean(name, 44), 10) for name in trials) + 0.2
        pitch = (card.width - left - MARGIN) / 4
        for column, name in enumerate(_COLUMNS):
            card.text(left + column * pitch, 0.88, name, 9.5, color=MUTED, gid="column")
        for row, (name, trial) in enumerate(trials.items()):
            y = 1.25 + 0.42 * row
            card.text(MARGIN, y, clean(name, 44), 10, gid=f"row:{name}")
            if not figures[row]:
                words = fit(f"no engine: {sentence(trial.said)}", card.width - left - MARGIN, 9)
                card.text(left, y, words, 9, color=UNASKED.text, gid="refused")
            for column, value in enumerate(figures[row]):
                x, long = left + column * pitch, max(0.6 * pitch * value / largest[column], 0.02)
                card.box(x, y - 0.12, long, 0.24, KINDS["convolution"].fill, radius=0.02, zorder=3)
                card.text(x + long + 0.08, y, _figure(value, column in (1, 2)), 9.5, gid="figure")
    return card.figure


def _figures(trial: Trial) -> tuple[float, ...]:
    """The figures of _COLUMNS; none without an engine."""
    if trial.engine is None or trial.plan_bytes is None:
        return ()
    activations = (trial.engine.activation_bytes or 0) / 2**20
    return trial.plan_bytes / 2**20, len(trial.engine.kernels), trial.streams, activations


def _figure(value: float, count: bool) -> str:
    if count:
        return f"{value:.0f}" if value else "not told"
    return number(value) if value >= 9.95 else f"{value:.1f}"


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
    table = compatibility()
    if software not in table.index:
        raise AssetError(f"'{software}' is not in the table.", fix=f"choose one of {', '.join(table.index)}.")
    capability = (card if isinstance(card, Gpu) else find_gpu(card)).compute_capability
    words = str(table.loc[software, "compute_capability"]).split("(")[0]
    listed = re.findall(r"\d+\.\d", words)
    if "and later" in words:
        return _number(capability) >= _number(listed[0])
    return capability in listed


def _number(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))
