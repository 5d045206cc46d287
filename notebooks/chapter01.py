"""The logger, tables, bars, widget and exercises of chapter 01, from PyTorch to ONNX."""

from __future__ import annotations

import atexit
import contextlib
import copy
import io
import tempfile
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import ipywidgets
import numpy as np
import onnx
import onnxruntime
import torch
from IPython.display import HTML
from ipywidgets import VBox
from onnxruntime.tools.onnx_model_utils import optimize_model
from polygraphy.logger import G_LOGGER
from torch import Tensor

from trtlab import datasets, models, trt
from trtlab.building import build
from trtlab.draw.frame import MARGIN, Picture, fit, key, message, plot, style, width_of
from trtlab.draw.palette import KINDS, MUTED, kind_of_op, readable_name
from trtlab.engine import Engine
from trtlab.errors import BuildError, ModelError, TrtlabError
from trtlab.exercises import Answer, Exercise
from trtlab.export_checks import checklist
from trtlab.models.export import hide_known_noise
from trtlab.onnx_model import Model, read_model, read_whole
from trtlab.profiles import guess
from trtlab.shapes import Shapes
from trtlab.widgets import dropdown, explorer, table

Simplifier = Callable[[onnx.ModelProto], onnx.ModelProto]
_TOLERANCE = 1e-4
_WORDS = {"float16": "FP16", "float64": "FP64"}  # NumPy's names of types, and this course's


def exercises() -> list[Exercise]:
    """01.1: export a clumsy model well. 01.2: use onnxsim safely. 01.3: a loop with an `if` that exports."""
    return [
        Exercise(
            "01.1",
            (
                "checklist(answer) says which lines of the class are to blame, one row at a time.",
                "The temperature may be a float32 buffer, and forward() needs no labels. What about .eval()?",
                "It must take any batch: which argument of the first export on the page said so?",
            ),
            _well_exported,
        ),
        Exercise(
            "01.2",
            (
                "What TensorRT cannot read is made by one pass of onnxsim's optimizer; the page names it.",
                "onnxsim.simplify has an argument that takes a list of passes to leave out, and another that turns the "
                "whole optimizer off and folds constants all the same.",
                "Build what you get, or ask checklist(answer): a misspelt name of a pass is ignored without a word.",
            ),
            _safely_simplified,
        ),
        Exercise(
            "01.3",
            (
                "No loop: most of PyTorch's functions work on all rows at once. Compute both results for all of them.",
                "The page's way without an If chose once for all rows. Here the condition needs one truth value a row.",
                "x.sum(1) has the shape (batch,), and x (batch, features). What does keepdim=True do?",
            ),
            _branch_free,
        ),
    ]


def _well_exported(answer: Any) -> Answer:
    """The digit CNN, its logits divided by 2, as a faultless ONNX model."""
    model = _onnx(answer)
    found = checklist(model)
    if not found.ok:
        return False, f"The checklist still says: {found.problems[0].name}, {found.problems[0].found}."
    if found["batch dimension"].verdict != "ok":
        return False, f"It takes only one batch size ({found['batch dimension'].found})."
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        return False, "It should take one input, the digits, and give one output, the logits."
    digits = datasets.digits("test").images[:5]
    expected = models.digit_cnn().torch_module()(torch.from_numpy(digits)).numpy() / 2
    right, message = _agrees(model, digits, expected, "the logits of the digit CNN divided by the temperature")
    if not right:
        return False, message
    kernels = _kernels(model, {model.graph.input[0].name: digits[:1].shape})
    if isinstance(kernels, str):
        return False, f"The numbers are right, but TensorRT refuses it: {kernels}"
    return True, f"{message} The checklist has nothing to fix, and TensorRT builds {kernels} kernels."


def _safely_simplified(answer: Any) -> Answer:
    """The encoder at a fixed size, with fewer nodes, and still one that TensorRT builds."""
    if isinstance(answer, tuple):
        return False, "onnxsim.simplify returns the model and whether its check went well: keep the model only."
    model, network = _onnx(answer), models.transformer_encoder()
    tokens = network.sample(2)["input_ids"]
    before = fixed_encoder()
    foreign = checklist(model)["operators"]
    if not foreign.ok:
        unheard = " If you named a pass: onnxsim skips a misspelt one without a word." * ("Attention" in foreign.found)
        return False, f"TensorRT has {foreign.found}.{unheard}"
    if len(model.graph.node) >= len(before.graph.node):
        return False, f"It has {len(model.graph.node)} nodes, no fewer than the exported model."
    expected = network.torch_module()(torch.from_numpy(tokens)).numpy()
    right, message = _agrees(model, tokens, expected, "the hidden states of the encoder")
    if not right:
        return False, message
    kernels = _kernels(model)
    if isinstance(kernels, str):
        return False, f"TensorRT still refuses it: {kernels}"
    nodes = f"{len(before.graph.node)} nodes became {len(model.graph.node)}"
    return True, f"{nodes}, and TensorRT builds {kernels} kernels. (With which tool, a file does not tell.)"


def _kernels(model: onnx.ModelProto, shapes: Shapes = None) -> int | str:
    """How many kernels TensorRT builds, or why it refuses."""
    try:
        return len(build(model, shapes=shapes, progress=False).kernels)
    except BuildError as error:
        return error.diagnosis.evidence or error.message


def fixed_encoder() -> onnx.ModelProto:
    """The transformer encoder at batch 2 and 16 tokens as the exporter wrote it, before any optimizer."""
    network = models.transformer_encoder()
    tokens = torch.from_numpy(network.sample(2)["input_ids"])
    with without_export_noise(), torch.inference_mode():
        program = torch.onnx.export(
            network.torch_module(), (tokens,), input_names=["input_ids"], output_names=["hidden_states"],
            dynamo=True, optimize=False, verbose=False,
        )  # fmt: skip
    assert program is not None
    return program.model_proto


def _branch_free(answer: Any) -> Answer:
    """A module that doubles each row whose sum is positive and takes the tanh of the others, for any batch."""
    if isinstance(answer, type) or not isinstance(answer, torch.nn.Module):
        return False, "The answer is a module, such as Rowwise(), not a class or a result."
    wrong = _wrong_rows(answer.eval())
    if wrong:
        return False, wrong
    model = _with_dynamic_batch(answer)
    if isinstance(model, str):
        return False, f"It cannot be exported with a dynamic batch: {model}"
    found = checklist(model)
    if found["control flow"].verdict != "ok":
        return False, f"The exported model still branches: {found['control flow'].found}."
    picks = found["data-dependent shapes"]
    if picks.verdict != "ok":
        return False, f"It picks rows, and how many the data decides ({picks.found}): TensorRT-RTX refuses that."
    x = _rows(5, 4)
    right, message = _agrees(model, x.numpy(), expected_rows(x).numpy(), "what PyTorch computes")
    if not right:
        return False, f"{message} Something was decided during the export."
    kernels = _kernels(model, {model.graph.input[0].name: ((1, 4), (2, 4), (8, 4))})
    if isinstance(kernels, str):
        return False, f"The numbers are right, but TensorRT refuses it: {kernels}"
    return True, "Both results are computed and one is kept for each row: no loop, no If, any batch."


def _with_dynamic_batch(module: torch.nn.Module) -> onnx.ModelProto | str:
    """The module's export for any batch, or the exporter's reason against it."""
    try:
        with without_export_noise(), torch.inference_mode():
            program = torch.onnx.export(
                module, (_rows(2, 4),), dynamo=True, verbose=False, input_names=["x"], dynamic_shapes=({0: "batch"},)
            )
    except Exception as error:
        lines = [line for line in str(error.__cause__ or error).splitlines() if line.strip()]
        return next((line.strip(" -") for line in lines if "static shape" in line), lines[0])
    assert program is not None
    return program.model_proto


def _wrong_rows(module: torch.nn.Module) -> str:
    """What PyTorch itself already gets wrong, as a sentence; "" when nothing."""
    for x in (*(_rows(*size) for size in ((2, 4), (1, 3), (4, 4), (5, 2))), torch.tensor([[1.0, -1.0], [3.0, -3.0]])):
        batch, features = x.shape
        try:
            with torch.inference_mode():
                got = module(x)
        except Exception as error:
            return f"For an input of {batch} × {features} it stops: {str(error).strip().splitlines()[0]}."
        if not isinstance(got, torch.Tensor) or got.shape != x.shape:
            return f"For an input of {batch} × {features} its result has another shape."
        bad = (~torch.isclose(got, expected_rows(x)).all(dim=1)).sum()
        if bad and not x.sum(dim=1).any():
            return "Where the sum of a row is exactly 0 it computes something else: 0 is not positive."
        if bad:
            return f"For an input of {batch} × {features} it computes something else in {bad} of {batch} rows."
    return ""


def _rows(batch: int, features: int) -> Tensor:
    """Rows with both signs in each, whose sums are negative and positive in turn."""
    row = torch.linspace(-1, 2, features)
    return torch.stack([row * (1 + index / 8) * (-1) ** (index + 1) for index in range(batch)])


def expected_rows(x: Tensor) -> Tensor:
    """What exercise 01.3 asks for, with the loop and the `if` that cannot be exported."""
    return torch.stack([row * 2 if row.sum() > 0 else row.tanh() for row in x])


def _onnx(answer: Any) -> onnx.ModelProto:
    return read_model(getattr(answer, "model_proto", answer))  # what torch.onnx.export returns, a ModelProto or a path


class _Gain(torch.nn.Module):
    """A gain on what `layer` gives, as a part of the module or as an argument."""

    def __init__(self, layer: torch.nn.Module, gain: torch.Tensor, first: bool = False) -> None:
        super().__init__()
        self.layer, self.first = layer, first
        self.register_buffer("gain", gain)

    def forward(self, x: torch.Tensor, gain: torch.Tensor | None = None) -> torch.Tensor:
        gain = self.gain if gain is None else gain
        return self.layer((x - 0.5) * gain) if self.first else self.layer(x) * gain


def fused_arguments() -> list[tuple[torch.nn.Module, torch.Tensor]]:
    """Modules for an image of 16 channels whose argument costs no kernel: a scale or mask before, a gain after."""
    gain = torch.linspace(0.5, 1.5, 16).reshape(1, 16, 1, 1)
    before, after = (torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
    mask = (torch.arange(32) % 2).float()
    modules = [_Gain(before, gain, True), _Gain(after, gain), _Gain(torch.nn.Linear(32, 32), mask, True)]
    return [(module.eval(), module.gain) for module in modules]


def _agrees(model: onnx.ModelProto, x: np.ndarray, expected: np.ndarray, what: str) -> Answer:
    as_it_is = onnxruntime.SessionOptions()  # ONNX Runtime cannot optimise once more what it has optimised
    as_it_is.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), as_it_is)
    got = session.run([model.graph.output[0].name], {model.graph.input[0].name: x})[0]
    if got.dtype != expected.dtype:
        return False, f"Its output is {_WORDS.get(got.dtype.name, got.dtype.name)}, not FP32."
    if got.shape != expected.shape:
        return False, f"Its output has the shape {got.shape}, expected is {expected.shape}."
    worst = float(np.abs(got - expected).max())
    if not worst < _TOLERANCE:
        return False, f"It does not compute {what}: the largest difference is {worst:.2g}."
    return True, f"It agrees with PyTorch to {worst:.0e}."


class KeepingLogger(trt.ILogger):
    """The logger of chapter 00, which keeps what TensorRT calls an error."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Keep an error."""
        if severity == trt.ILogger.ERROR:
            self.errors.append(message)


@cache
def folder() -> Path:
    """An empty folder for the files of this chapter; it goes when Python ends."""
    made = tempfile.TemporaryDirectory(prefix="chapter01-")
    atexit.register(made.cleanup)
    return Path(made.name)


def tensorrt(model: onnx.ModelProto, gpu: str | None = None, shapes: Shapes = None) -> Engine | str:
    """The engine that TensorRT builds, or its words where it refuses; dynamic inputs get small sizes by default."""
    try:
        return build(model, gpu=gpu, shapes=shapes or guess(model) or None, progress=False)
    except TrtlabError as error:
        return error.diagnosis.evidence or error.message


def in_short(result: Engine | str) -> str:
    """What `tensorrt` returned, in two words."""
    if isinstance(result, str):
        return "refused"
    return f"{len(result.kernels)} kernel{'s' if len(result.kernels) != 1 else ''}"


def in_lines(message: str) -> str:
    """A message of TensorRT, wrapped, without the name of the C++ function that wrote it."""
    lines = message.split(" In operator()")[0].splitlines()
    return "\n".join(wrapped for line in lines for wrapped in textwrap.wrap(line, 95))


def sizes(model: onnx.ModelProto) -> list[int | str]:
    """The shape of the first input: numbers, and names where it is dynamic."""
    return [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]


def foreign(model: onnx.ModelProto) -> str:
    """The operators of `model` that ONNX does not define."""
    return ", ".join(sorted({f"{node.domain}::{node.op_type}" for node in model.graph.node if node.domain}))


def about_training(warned: Sequence[warnings.WarningMessage]) -> str:
    """What the exporter's warnings say of training mode: the first two sentences."""
    said = next(str(one.message) for one in warned if "training mode" in str(one.message))
    return ". ".join(said.split(". ")[:2]).rstrip(".") + "."


def by_the_old_exporter(module: torch.nn.Module, x: Tensor) -> onnx.ModelProto:
    """What torch.onnx.export(dynamo=False) writes."""
    written = io.BytesIO()
    with without_export_noise():
        torch.onnx.export(module, (x,), written, dynamo=False)
    return onnx.load_from_string(written.getvalue())


def what_each_does(engine: Engine, model: onnx.ModelProto) -> HTML:
    """A table of the kernels with the ONNX operations that each runs."""
    ops = engine.fate(model).set_index("node")["op"]
    rows = [
        (number, layer.type, readable_name(layer), ", ".join(ops[name] for name in layer.onnx_nodes) or "none")
        for number, layer in enumerate(engine.kernels, 1)
    ]
    return table(["", "type", "TensorRT's name", "ONNX node"], rows)


def simplified_picture(model: onnx.ModelProto, tool: Simplifier, name: str) -> Picture:
    """Run a simplifier called `name` over `model` and draw the nodes before and after, with what TensorRT says to each.

    Dynamic inputs are built at batch 1. The model itself is not changed.
    """
    versions = {"as it is": model, name: tool(copy.deepcopy(model))}
    remarks = {title: in_short(tensorrt(version)) for title, version in versions.items()}
    before, after = (len(version.graph.node) for version in versions.values())
    return nodes_by_kind(versions, f"{name}: {before} nodes become {after}", remarks=remarks)


def simplifier_explorer(networks: Mapping[str, onnx.ModelProto], tools: Mapping[str, Simplifier]) -> VBox:
    """Controls for model and simplifier; each change runs the simplifier and the real compiler and draws the result."""
    wide = {"button_width": "auto"}  # long names stay whole
    return explorer(
        lambda model, tool: simplified_picture(networks[model], tools[tool], tool),
        model=dropdown("Model", list(networks)),
        tool=ipywidgets.ToggleButtons(options=list(tools), description="Simplifier", style=wide),
    )


def nodes_by_kind(
    networks: Mapping[str, Model], title: str, *, remarks: Mapping[str, str] | None = None, width: float = 9.2
) -> Picture:
    """Draw a bar for each of `networks`, its nodes by kind; `remarks` says what to write behind a bar."""
    if not networks:
        raise ModelError("There is no model to draw.", fix="pass a dictionary with a title for each model.")
    kinds = {name: Counter(kind_of_op(node.op_type) for node in _nodes(model)) for name, model in networks.items()}
    longest = max(map(Counter.total, kinds.values()))
    if not longest:
        return message("These models have no nodes", ["Their outputs are inputs or constants."])
    order = sorted(KINDS, key=lambda kind: kind == "data movement")  # last: that is what simplifiers take away
    words = {name: _count_of(count.total(), (remarks or {}).get(name)) for name, count in kinds.items()}
    with style():
        names = [fit(name, 2.6, 10) for name in networks]
        left = MARGIN + 0.15 + max(width_of(name, 10) for name in names)
        right = MARGIN + 0.1 + max(width_of(one, 9) for one in words.values())
        card, axes = plot(title, width, 1.2 + 0.46 * len(names), left=left, right=right, bottom=0.45, size=15)
        axes.set(xlim=(0, longest), xticks=[], ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names, fontsize=10)
        axes.spines["bottom"].set_visible(False)
        for row, (name, count) in enumerate(kinds.items()):
            done = 0
            for kind in filter(count.get, order):
                fill, ink = KINDS[kind]
                bar = axes.barh(row, count[kind], 0.65, done, color=fill, edgecolor="white", gid=f"bar:{kind}")
                if count[kind] * (width - left - right) > longest * (width_of(str(count[kind]), 8) + 0.06):
                    axes.bar_label(bar, label_type="center", color=ink, fontsize=8)
                done += count[kind]
            axes.annotate(
                words[name], (done, row), (7, 0), textcoords="offset points", fontsize=9, color=MUTED, va="center"
            )
        shown = [kind for kind in order if any(kind in count for count in kinds.values())]
        key(card, {kind: KINDS[kind].fill for kind in shown}, card.height - 0.36)
    return card.figure


def _nodes(model: Model) -> Sequence[onnx.NodeProto]:
    return read_model(model).graph.node


def _count_of(nodes: int, remark: str | None) -> str:
    return f"{nodes} node{'s' if nodes != 1 else ''}" + (f" · {remark}" if remark else "")


LEVELS = {"basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}


def optimized_by_onnxruntime(model: Model, level: Literal["basic", "extended", "all"] = "basic") -> onnx.ModelProto:
    """The graph that ONNX Runtime would run on this CPU, as a model; the given model is not changed.

    Like `python -m onnxruntime.tools.optimize_onnx_model --opt_level basic in.onnx out.onnx`. From "extended" on it
    holds operators that only ONNX Runtime knows. Raises ModelError for an unknown level or a model it cannot read.
    """
    if level not in LEVELS:
        raise ModelError(f"ONNX Runtime has no level '{level}'.", fix=f"choose {', '.join(LEVELS)}.")
    proto = read_whole(model)
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        onnx.save(proto, before)
        try:
            optimize_model(before, after, getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level]))
        except Exception as error:  # its exceptions have no base class but this
            words = f"ONNX Runtime cannot optimise the model: {str(error).strip()}"
            raise ModelError(words, fix="'polygraphy check lint' says more.") from error
        return onnx.load(after)


# They repeat what an exception or the exported model says as well.
_LOGGERS = ("torch.fx.experimental.symbolic_shapes", "torch.onnx._internal.exporter._compat")


def hide_export_noise() -> None:
    """Hide, for the rest of this Python, logs and one warning of the exporter that concern no reader."""
    global _hidden
    _hidden = contextlib.ExitStack()
    _hidden.enter_context(hide_known_noise(*_LOGGERS))
    G_LOGGER.module_severity = G_LOGGER.ERROR  # Polygraphy's


@contextlib.contextmanager
def without_export_noise() -> Iterator[list[warnings.WarningMessage]]:
    """Hide logs and prints to stderr of the block; yields the list that its Python warnings are collected in."""
    with (
        warnings.catch_warnings(record=True) as warned,
        contextlib.redirect_stderr(io.StringIO()),
        hide_known_noise(*_LOGGERS),
    ):
        warnings.simplefilter("always")
        yield warned
