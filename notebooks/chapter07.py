"""Chapter 07, memory: its exercises, its toys, its pictures and its widget."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
from chapter07_curves import Curve
from ipywidgets import VBox
from matplotlib.axes import Axes
from onnxconverter_common import float16

from trtlab import memory, models, trt
from trtlab.building import build
from trtlab.buildlog import read_build_log
from trtlab.draw.frame import MARGIN, Picture, clean, key, label, message, plot, style, width_of
from trtlab.draw.palette import BAR, CARD, MUTED, QUANTITIES, TEXT, UNASKED, readable_name
from trtlab.engine import Engine
from trtlab.errors import BuildError
from trtlab.exercises import Answer, Exercise, a_model, same_numbers, whole_number
from trtlab.memory import Liveness, breakdown
from trtlab.onnx_model import Model
from trtlab.tables import number, unit_of
from trtlab.toys import toy
from trtlab.widgets import explorer, slider


def exercises() -> list[Exercise]:
    """07.1: what does a shortcut keep alive? 07.2: how low may the workspace's limit be? 07.3: take less memory."""
    return [
        Exercise(
            "07.1",
            (
                "A tensor is alive from the kernel that writes it to the last one that reads it. Who reads c1 last?",
                "In a chain, two tensors are alive: what a kernel reads and what it writes. What is different here?",
                "Write down, for each kernel, what it reads, what it writes, and what waits. Which row is the longest?",
            ),
            _shortcut,
        ),
        Exercise(
            "07.2",
            (
                "ResNet-50 at batch 8 built with a limit of 1 KiB, although it reserves 69 MiB. What is larger there?",
                "The message asks for the limit plus the weights. That sum must reach what the engine reserves.",
                "(activation_bytes - weight_bytes) / 2**20 of ResNet-50 at batch 32, rounded up.",
            ),
            _workspace,
        ),
        Exercise(
            "07.3",
            (
                "Draw chapter07.liveness(memory.liveness(engine)). Which large tensor feeds only a 1×1 convolution?",
                "A 1×1 convolution works on each pixel alone, and nearest-neighbour upsampling copies pixels: either "
                "may come first.",
                "q = Conv(d4, v8) at the small size with 8 channels, then v = Resize<…>(q, , up).",
            ),
            _less_memory,
        ),
    ]


_CONV = "Conv<pads=[1,1,1,1]>"
_NEAREST = 'Resize<mode="nearest",coordinate_transformation_mode="asymmetric",nearest_mode="floor">'

SKIP_TEXT = f"""
    skip (float[1,64,256,256] x) => (float[1,8,256,256] y) {{
        a = {_CONV}(x, w0)
        p = Conv<pads=[1,1,1,1],strides=[2,2]>(a, w1)
        d1 = {_CONV}(p, wd)   d2 = {_CONV}(d1, wd)
        d3 = {_CONV}(d2, wd)  d4 = {_CONV}(d3, wd)
        u = {_NEAREST}(d4, , up)
        s = Conv(a, w8)  v = Conv(u, v8)  y = Add(s, v)
    }}"""

SKIP_WEIGHTS = {
    **dict.fromkeys(("w0", "w1", "wd"), (64, 64, 3, 3)),
    **dict.fromkeys(("w8", "v8"), (8, 64, 1, 1)),
    "up": [1.0, 1.0, 2.0, 2.0],
}


def shortcut_network() -> onnx.ModelProto:
    """Eight convolutions in a row, each with 6.1 MiB of output, and a shortcut from the first to the end."""
    body = " ".join(f"c{n} = {_CONV}({f'c{n - 1}' if n > 1 else 'x'}, w)" for n in range(1, 9))
    text = f"shortcut (float[8,64,56,56] x) => (float[8,64,56,56] y) {{ {body} y = Add(c8, c1) }}"
    return toy(text, w=(64, 64, 3, 3))


def skip_network() -> onnx.ModelProto:
    """A U-Net in small: large features wait while a detour goes through a smaller size and comes back."""
    return toy(SKIP_TEXT, **SKIP_WEIGHTS)


def _shortcut(answer: float) -> Answer:
    if isinstance(answer, bool) or not isinstance(answer, Real):
        return False, f"The answer is a number of MiB, not {type(answer).__name__}."
    life, answer = memory.liveness(build(shortcut_network(), progress=False)), float(answer)
    truth = life.peak_bytes / 2**20
    if abs(answer - truth) <= 0.02 * truth:
        return True, f"Input, output and c1, which waits for the Add: three tensors, {truth:.1f} MiB."
    if abs(answer - truth) <= 0.05 * truth:
        return False, f"{answer:g} MiB is close, but rounded too far: give a decimal."
    if abs(answer - life.sum_bytes / 2**20) <= 0.02 * answer:
        return False, "These are all tensors together; not all of them live at the same time."
    if life.reserved_bytes and abs(answer - life.reserved_bytes / 2**20) <= 0.02 * answer:
        return False, "This is what TensorRT reserves; part of it is scratch memory, not tensors."
    if answer >= 1e5:
        return False, "That looks like bytes: the answer is in MiB (2**20 bytes)."
    if answer < truth:
        return False, f"More than {answer:g} MiB: besides input and output something waits."
    return False, f"Less than {answer:g} MiB: what nobody reads any more is dead."


def _workspace(answer: int) -> Answer:
    whole_number(answer, "MiB")
    engine = build(models.resnet50().onnx(), shapes={"x": (32, 3, 224, 224)}, progress=False)
    reserved, weights = engine.activation_bytes or 0, engine.weight_bytes or 0
    truth = math.ceil((reserved - weights) / 2**20)
    if answer == truth:
        return True, f"{truth} MiB and the weights reach the {reserved / 2**20:.0f} MiB that the engine reserves."
    if answer == math.ceil(reserved / 2**20):
        return False, "It does build with that, and with less: look at what the message adds to the limit."
    if answer > truth:
        return False, f"It builds with {answer} MiB, but that is not the smallest number that does."
    return False, f"With {answer} MiB TensorRT runs out of memory: add what the message adds, and compare."


def _less_memory(answer: onnx.ModelProto) -> Answer:
    a_model(answer)
    x = np.random.default_rng(0).normal(size=(1, 64, 256, 256)).astype(np.float32)
    same_numbers(skip_network(), answer, {"x": x}, _same_image)
    try:
        mine = memory.liveness(build(answer, progress=False))
    except BuildError as error:
        return False, f"The numbers are right, but TensorRT refuses the model. {error}"
    theirs = memory.liveness(build(skip_network(), progress=False))
    before, after = theirs.peak_bytes / 2**20, mine.peak_bytes / 2**20
    if after >= before:
        return False, f"The numbers are right, but {after:.1f} MiB are alive at once, and before it were {before:.1f}."
    return True, f"The same numbers, and {after:.1f} MiB alive at once instead of {before:.1f}."


def _same_image(name: str, truth: np.ndarray, given: np.ndarray) -> str:
    worst = float(np.abs(truth - given).max() / np.abs(truth).max())
    return "" if worst < 1e-3 else f"{name} differs by up to {100 * worst:.1f}% of its largest value."


MEMORY_BATCHES = (1, 2, 4, 8, 16, 32, 64)
MEMORY_SIDES = (128, 192, 224, 256, 320, 384, 448, 512)


def memory_picture(model: Model, batch: int, side: int, gpu: str = "RTX 4090") -> Any:
    """Compile `model`, whose input x takes images (N, 3, H, W) of any size, and draw its parts beside one small image.

    Raises what `build` raises.
    """
    sizes = dict.fromkeys([(1, 224), (batch, side)])
    tables = {}
    for many, one in sizes:
        engine = build(model, gpu=gpu, shapes={"x": (many, 3, one, one)}, progress=False)
        tables[f"batch {many}, {one} × {one}"] = breakdown(engine)
    chosen = list(tables.values())[-1]
    total = sum(size for size in chosen["bytes"] if size is not None) / 2**20
    share = 100 * chosen["bytes"]["weights"] / 2**20 / total
    return parts(tables, f"Batch {batch}, {side} × {side} pixels: {total:.0f} MiB, of which {share:.0f}% are weights")


def memory_explorer(model: Model, gpu: str = "RTX 4090") -> VBox:
    """Sliders for batch and image side; each move runs the real compiler and draws what takes the memory."""
    return explorer(
        lambda batch, side: memory_picture(model, batch, side, gpu),
        batch=slider("Batch", MEMORY_BATCHES, 8),
        side=slider("Side", MEMORY_SIDES, 224),
    )


def growth(panels: Mapping[str, Mapping[str, Curve]], title: str) -> Picture:
    """Draw curves side by side: {what varies, with its unit: {what the line is: Curve}}; points were measured."""
    if not panels or not all(panels.values()):
        return message("There is no curve to draw", ["Give {'batch': {'ResNet-50': curve}}."])
    with style():
        width = 1.2 + 3.6 * len(panels)
        card, first = plot(title, width, 3.9, left=0.75, right=width - 4.0)
        frame = first.get_position()
        for index, (words, curves) in enumerate(panels.items()):
            axes = first
            if index:
                axes = card.figure.add_axes((frame.x0 + index * 3.7 / width, frame.y0, frame.width, frame.height))
                axes.set_facecolor("none")
                axes.tick_params(labelsize=9.5, length=0)
                axes.spines[["top", "right", "left"]].set_visible(False)
            _lines(axes, curves)
            label(axes, words, "" if index else "activation memory, MiB")
    return card.figure


def _lines(axes: Axes, curves: Mapping[str, Curve]) -> None:
    for (words, curve), color in zip(curves.items(), (QUANTITIES[0], *QUANTITIES[3:]), strict=False):
        sizes = np.unique(np.linspace(curve.sizes[0], curve.sizes[-1], 60).astype(int))
        between = [curve.at(int(size)) / 2**20 for size in sizes]
        axes.plot(sizes, between, color=color, linewidth=1.8)
        measured = [size / 2**20 for size in curve.activation_bytes]
        axes.plot(curve.sizes, measured, "o", color=color, markersize=5)
        if len(curves) > 1:
            axes.annotate(words, (sizes[-1], between[-1]), (-8, 4), textcoords="offset points", fontsize=9,
                          color=MUTED, ha="right", parse_math=False)  # fmt: skip
    axes.set_xlim(0, None)
    axes.set_ylim(0, None)


def halved(model: Path) -> onnx.ModelProto:
    """The model at that path with every number in FP16: enough to count bytes; chapter 04 does it well."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will be truncated")  # FP16 has no numbers below 6e-8
        return float16.convert_float_to_float16(onnx.load(model))


SCRATCH = 8_192_000  # bytes that TensorRT-RTX 1.7 sets aside for a convolution or matrix product


@dataclass(frozen=True)
class Block:
    """Bytes that are taken from kernel `first` to kernel `last`; no `name` for scratch memory."""

    name: str
    first: int
    last: int
    nbytes: int


def wanted(life: Liveness) -> list[Block]:
    """Kernel after kernel: each tensor that it writes, then the scratch memory of a convolution or matrix product."""
    blocks: list[Block] = []
    for index, kernel in enumerate(life.kernels):
        blocks += [Block(one.name, index, one.last, one.nbytes) for one in life.tensors if one.born == index]
        blocks += [Block("", index, index, SCRATCH)] * (kernel.type != "kgen")
    return blocks


def memory_map(packed: Iterable[tuple[Block, int]], life: Liveness, title: str, kernels: int = 30) -> Picture:
    """Draw the addresses of blocks, given as (block, start), while the first `kernels` run."""
    unit = 2**20
    with style():
        card, axes = plot(title, 9.5, 4.9, bottom=1.0, right=0.4)
        for block, start in packed:
            fill, edge = (BAR, CARD) if block.name else (UNASKED.fill, UNASKED.text)
            axes.bar(block.first + 0.5, block.nbytes / unit, block.last - block.first + 1, start / unit,
                     align="edge", color=fill, edgecolor=edge, linewidth=0.8)  # fmt: skip
        reserved = (life.reserved_bytes or 0) / unit
        axes.axhline(reserved, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        words = f"TensorRT reserves {reserved:.1f} MiB"
        axes.text(kernels + 0.4, reserved, words, fontsize=9.5, color=MUTED, ha="right", va="bottom")
        axes.set_xlim(0.5, kernels + 0.5)
        axes.set_ylim(0, 1.12 * reserved)
        label(axes, "kernel, in the order of execution", "address, MiB")
        key(card, {"a tensor": BAR, "scratch memory of one kernel": UNASKED.text}, card.height - MARGIN)
    return card.figure


def chain(length: int) -> onnx.ModelProto:
    """So many convolutions in a row; each writes 8 × 64 × 56 × 56 numbers, 6.1 MiB."""
    names = ["x", *[f"c{number}" for number in range(1, length)], "y"]
    body = " ".join(f"{new} = {_CONV}({old}, w)" for old, new in pairwise(names))
    return toy(f"chain (float[8,64,56,56] x) => (float[8,64,56,56] y) {{ {body} }}", w=(64, 64, 3, 3))


_BY_HAND = """
import json, sys
from trtlab import trt

gpu, workspace, streams, shapes = json.loads(sys.argv[1])

class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.said = []

    def log(self, severity, message):
        self.said.append((severity.name, message))

logger = Logger()
builder = trt.Builder(logger)
network = builder.create_network(0)
trt.OnnxParser(network, logger).parse(sys.stdin.buffer.read())
config = builder.create_builder_config()
config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
if gpu:
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
profile = builder.create_optimization_profile()
for name, shape in shapes.items():
    profile.set_shape(name, shape, shape, shape)
config.add_optimization_profile(profile)
if workspace is not None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
if streams is not None:
    config.max_aux_streams = streams
builder.build_serialized_network(network, config)
print(json.dumps(logger.said))
"""


def build_with(
    model: onnx.ModelProto, *, workspace: int | None = None, streams: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> tuple[Engine, str]:  # fmt: skip
    """Compile with a limit of the workspace in bytes, or a number of auxiliary streams: (the engine, its first error).

    The calls are those of chapter 00, in a process of their own: a build that failed can spoil the next one.
    """
    order = json.dumps([hasattr(trt, "ComputeCapability"), workspace, streams, dict(shapes or {})])
    command = [sys.executable, "-c", _BY_HAND, order]
    done = subprocess.run(command, input=model.SerializeToString(), capture_output=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    errors = [message for kind, message in said if kind == "ERROR"]
    return read_build_log(message for _, message in said), errors[0] if errors else ""


def reason(error: str) -> str:
    """What TensorRT's first error says, without where in TensorRT's source it is."""
    found = re.search(r"no tactics[^.]*|OutOfMemory \([^)]*\)", error)
    return found[0] if found else error


_ROLES = {"written by this kernel": QUANTITIES[0], "read by it": QUANTITIES[1], "kept for a later one": QUANTITIES[3]}


def liveness(life: Liveness, title: str = "") -> Picture:
    """Draw the intermediate tensors alive during each kernel, in the order of execution, and what TensorRT reserves.

    The title is the finding: everything together, most at once, reserved.
    """
    if not life.tensors:
        return message("Nothing is alive between kernels", ["This engine has no intermediate tensors."])
    unit, name = unit_of(max(life.peak_bytes, life.reserved_bytes or 0))
    figures = {"of tensors": life.sum_bytes, "alive at once": life.peak_bytes, "reserved": life.reserved_bytes}
    words = ", ".join(f"{number(size / unit)} {name} {what}" for what, size in figures.items() if size is not None)
    with style():
        card, axes = plot(title or words, 11.0, 4.4, note=words if title else "", right=0.45, bottom=1.0)
        base = [0.0] * len(life.kernels)
        for color, sizes in zip(_ROLES.values(), _by_role(life), strict=True):
            heights = [size / unit for size in sizes]
            axes.bar(range(1, len(base) + 1), heights, bottom=base, color=color, width=0.82, zorder=2)
            base = [low + high for low, high in zip(base, heights, strict=True)]
        axes.set_xlim(0.3, len(base) + 0.7)
        axes.set_ylim(0, 1.22 * max(life.peak_bytes, life.reserved_bytes or 0) / unit)
        _mark(axes, life, unit, name)
        label(axes, "kernel, in the order of execution", name)
        key(card, _ROLES, card.height - MARGIN - 0.02)
    return card.figure


def _by_role(life: Liveness) -> list[list[int]]:
    """Bytes a kernel, for each role of a tensor: written by it, read by it, kept for a later one."""
    found = [[0] * len(life.kernels) for _ in _ROLES]
    for index, layer in enumerate(life.kernels):
        written = {tensor.name for tensor in layer.outputs}
        read = {tensor.name for tensor in layer.inputs} - written
        for tensor in life.present[index]:
            role = 0 if tensor.name in written else 1 if tensor.name in read else 2
            found[role][index] += tensor.nbytes
    return found


def _mark(axes: Axes, life: Liveness, unit: int, name: str) -> None:
    """Name the peak, and draw a line at what TensorRT reserves."""
    place, peak = life.peak + 1, life.peak_bytes / unit
    where = f"{clean(readable_name(life.kernels[life.peak]), 40)}"
    right = place > 0.55 * len(life.kernels)
    axes.annotate(
        f"most at once: {number(peak)} {name}, kernel {place} ({where})", (place, peak),
        (-8 if right else 8, 6), textcoords="offset points", fontsize=9, color=TEXT, ha="right" if right else "left",
        parse_math=False,
    )  # fmt: skip
    if life.reserved_bytes is not None:
        line = life.reserved_bytes / unit
        axes.axhline(line, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            f"TensorRT reserves {number(line)} {name}", (1, line), (-2, 5), xycoords=("axes fraction", "data"),
            textcoords="offset points", fontsize=9, color=MUTED, ha="right",
        )  # fmt: skip


_COLORS_PARTS = {
    "weights": QUANTITIES[0],
    "activations": QUANTITIES[1],
    "activations and scratch": QUANTITIES[1],
    "scratch and gaps": QUANTITIES[2],
    "inputs": QUANTITIES[3],
    "outputs": QUANTITIES[4],
}

_ROW = 0.38  # inches a bar


def parts(tables: Mapping[str, pd.DataFrame], title: str) -> Picture:
    """Draw tables of `memory.breakdown`, {what the engine is: table}: device memory that is known without a GPU."""
    sizes = {
        name: {part: int(size) for part, size in table["bytes"].items() if part in _COLORS_PARTS and size is not None}
        for name, table in tables.items()
    }
    if not any(sizes.values()):
        return message("There are no parts to draw", ["Give {'batch 8': lab.memory.breakdown(engine)}."])
    totals = [sum(one.values()) for one in sizes.values()]
    unit, name_of_unit = unit_of(max(totals))
    left = MARGIN + max(width_of(clean(name, 34), 9.5) for name in sizes) + 0.12
    with style():
        card, axes = plot(title, 9.5, 1.75 + _ROW * len(sizes), left=left, right=1.0, bottom=0.95)
        for row, (one, total) in enumerate(zip(sizes.values(), totals, strict=True)):
            start = 0.0
            for part, size in one.items():
                axes.barh(row, size / unit, left=start, height=0.7, color=_COLORS_PARTS.get(part, BAR))
                start += size / unit
            axes.text(start, row, f" {number(total / unit)} {name_of_unit}", fontsize=9.5, va="center")
        axes.set_yticks(range(len(sizes)), [clean(name, 34) for name in sizes], fontsize=9.5)
        axes.set_ylim(len(sizes) - 0.5, -0.5)
        axes.set_xlim(0, max(totals) / unit * 1.02)
        label(axes, name_of_unit, "", grid="x")
        shown = {part: color for part, color in _COLORS_PARTS.items() if any(part in one for one in sizes.values())}
        key(card, shown, card.height - 0.3)
    return card.figure
