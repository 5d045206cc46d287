"""Draw the pictures of README and the chapters, the same bytes each time: notebooks/pictures/make_pictures.py."""

from __future__ import annotations

import textwrap
from pathlib import Path

import trtlab as lab
from trtlab.draw.frame import MARGIN, Card, Picture, style, width_of
from trtlab.draw.palette import EDGE, KINDS, MUTED, QUANTITIES, TEXT
from trtlab.files import write_atomically

HERE = Path(__file__).resolve().parent
GPU = "RTX 4090"
BUILD, RUN = ("#E4F2EE", "#13806B"), ("#ECE8F8", "#4B37A8")  # the fill and the ink of the two lanes
WIDE, HIGH, PITCH = 1.9, 0.98, 2.45  # inches: a box, and from one column to the next
# Column, middle from the top in inches, name, TensorRT's name, what it does; white boxes are data.
BOXES = (
    (0, 1.8, "Model", "model.onnx", "nodes and weights"),
    (1, 1.8, "Parser", "OnnxParser", "reads ONNX"),
    (2, 1.8, "Network", "INetworkDefinition", "layers, not optimised"),
    (3, 1.8, "Builder", "Builder", "fuses, picks kernels"),
    (4, 1.8, "Plan", "model.plan", "the compiled engine"),
    (2, 3.13, "Profile", "IOptimizationProfile", "min, opt, max shapes"),
    (3, 3.13, "Config", "IBuilderConfig", "target, memory, flags"),
    (0, 5.2, "Runtime", "Runtime", "loads the plan"),
    (1, 5.2, "Engine", "ICudaEngine", "weights on the GPU"),
    (2, 5.2, "Context", "IExecutionContext", "shapes, activations"),
    (3, 5.2, "Inference", "execute_async_v3", "runs the kernels"),
    (4, 5.2, "Outputs", "your buffers", "in GPU memory"),
)

Tree = tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]
# Complaint, and its questions in order: what to ask, the answer that ends the search, and what to do then.
TREE: Tree = (
    ("It does not convert", (
        ("Does ONNX Runtime fail, too, with a shape or value?", "yes", "The model is wrong: mend the export."),
        ("Is a node refused? (inspect capability)", "yes", "Fold constants, change the attribute, or cut it off."),
        ("Does it speak of a profile, kMIN or kMAX?", "yes", "Your shapes contradict the model: profiles.check."),
        ("Does another target or precision build?", "yes", "This GPU has no such kernel. Else: debug reduce, report."),
    )),
    ("The accuracy drops", (
        ("Is FP32 ONNX wrong on this input, too?", "yes", "Input or export: compare both with PyTorch."),
        ("Is the first tensor bad already?", "yes", "Compare all scales: other data, or one wrong scale?"),
        ("Does the loss begin at one tensor?", "yes", "Overflow: FP32 there. Clipped: another scale."),
        ("Does it grow a little in each layer?", "yes", "Fewer nodes in INT8, scales per channel, or FP16."),
    )),
    ("It is not faster", (
        ("Do kernels compute in the type you want?", "no", "The model must say it: types, and Q/DQ on both sides."),
        ("Are there kernels that no node asked for?", "yes", "Change types less often, Q/DQ on residuals."),
        ("Do kernels move as many bytes as before?", "yes", "Smaller types at the borders, more fusion."),
        ("Does the GPU wait? (batch 1, copies)", "yes", "Larger batch, CUDA graph, overlap."),
    )),
    ("The memory runs out", (
        ("At build time, about the workspace?", "yes", "The limit is too small: raise it or leave it out."),
        ("Is the profile's max larger than what comes?", "yes", "Lower max, or two profiles or engines."),
        ("Are the weights the largest part?", "yes", "FP16 or INT8 weights, weight streaming."),
        ("Are there several contexts?", "yes", "One block for all, or fewer. Else: FP16 activations."),
    )),
)  # fmt: skip

FITS: Tree = (
    ("The build fails", (
        ("Does it speak of the workspace, or a size?", "yes", "Leave set_memory_pool_limit out, or raise it."),
        ("Does a tensor reach 2³¹ elements?", "yes", "Split the batch or the image into parts."),
        ("Is the computer's own memory full?", "yes", "Build one engine at a time, with a smaller max."),
    )),
    ("Loading or running fails", (
        ("Are the weights the largest part?", "yes", "FP16 or INT8 weights; weight streaming."),
        ("Is the profile's max larger than what comes?", "yes", "Lower max, or two profiles or engines."),
        ("Are the activations the largest part?", "yes", "FP16, which also lets attention fuse."),
        ("Are there several contexts or streams?", "yes", "One block for all contexts; max_aux_streams = 0."),
    )),
)  # fmt: skip

COMPLAINTS = ("Four complaints, and what to ask first",
              "First: keep the whole log, read the first block of errors to its end, find the node.", TREE)  # fmt: skip
DOES_NOT_FIT = ("It does not fit: what to ask, and what to do",
                "First of all: memory.breakdown(engine) says which part is large.", FITS)  # fmt: skip


def main() -> None:
    """Write the pictures beside this file."""
    model = lab.models.resnet50().onnx()
    engine = lab.build(model, gpu=GPU, shapes={"x": (1, 3, 224, 224)})
    nodes, kernels = len(engine.fate(model)), len(engine.kernels)
    title = f"ResNet-50 for an {GPU}: {nodes} ONNX nodes become {kernels} kernels"
    write_atomically(HERE / "resnet50_fusion.png", lab.draw.fusion(engine, model, title=title).png())
    write_atomically(HERE / "workflow.png", workflow().png())
    write_atomically(HERE / "decision_tree.png", decision_tree(*COMPLAINTS).png())
    write_atomically(HERE / "does_not_fit.png", decision_tree(*DOES_NOT_FIT).png())
    write_atomically(HERE / "fused.png", fused().png())
    write_atomically(HERE / "min_opt_max.png", min_opt_max().png())
    write_atomically(HERE / "int8_sum.png", int8_sum().png())
    write_atomically(HERE / "shortcut.png", shortcut().png())
    write_atomically(HERE / "owners.png", owners().png())
    write_atomically(HERE / "two_streams.png", two_streams().png())


def workflow() -> Picture:
    """Draw what builds an engine and what runs it, and which of the two needs a GPU."""
    with style():
        card = Card(12.6, 6.5)
        card.title("Build once without a GPU, run many times on one", 18)
        lane(card, 0.75, 3.02, BUILD, 0, "BUILD, once", "no GPU needed with TensorRT-RTX, as in this course")
        lane(card, 4.23, 1.63, RUN, 1, "RUN, many times", "needs an NVIDIA GPU")
        for column, middle in [(c, y) for y in (1.8, 5.2) for c in range(4)] + [(2, 3.13)]:
            arrow(card, (left(column) + WIDE, middle), (left(column + 1), middle))
        config, plan, runtime = (left(column) + WIDE / 2 for column in (3, 4, 0))
        arrow(card, (config, 3.13 - HIGH / 2), (config, 1.8 + HIGH / 2))
        arrow(card, (plan, 1.8 + HIGH / 2), (plan, 4.0), (runtime, 4.0), (runtime, 5.2 - HIGH / 2))
        for box in BOXES:
            draw_box(card, *box)
        card.text(left(0), 3.03, "The build log says what became of each layer:", 11, color=MUTED)
        card.text(left(0), 3.27, "it is what this course reads.", 11, color=MUTED)
        note = "Full TensorRT times kernels while it builds, so there the builder needs the GPU too."
        card.text(MARGIN, 6.1, note, 11, color=MUTED)
    return card.figure


def fused() -> Picture:
    """Draw where the result of a Conv goes before a Clip, as two kernels and as one, in EfficientNet-Lite0."""
    gpu = lab.gpu(GPU)
    photo, result = (4 * count / 2**20 for count in (3 * 224 * 224, 32 * 112 * 112))  # MiB in FP32
    levels = (("the chip's cores", "registers, shared memory"), ("L2 cache", f"{gpu.l2_mb:.0f} MB"),
              ("GPU memory", f"{gpu.memory_gb:.0f} GB, {gpu.bandwidth_gb_s:,.0f} GB/s"))  # fmt: skip
    with style():
        card = Card(9.2, 5.0)
        card.title("Fused, the result of the convolution never leaves the cores", 16)
        for row, (name, size) in enumerate(levels):
            y = 0.95 + 1.1 * row
            card.box(MARGIN, y, card.width - 2 * MARGIN, 0.95, (RUN, BUILD, BUILD)[row][0], radius=0.1, zorder=1)
            card.text(MARGIN + 0.12, y + 0.35, name, 11, weight="bold", color=(RUN, BUILD, BUILD)[row][1])
            card.text(MARGIN + 0.12, y + 0.62, size, 9.5, color=MUTED)
        for x, width, name in ((2.6, 1.0, "Conv"), (4.4, 1.0, "Clip"), (6.7, 1.7, "Conv + Clip")):
            card.box(x, 1.12, width, 0.6, RUN[1], radius=0.1, zorder=3)
            card.text(x + width / 2, 1.43, name, 12, color="#FFFFFF", weight="bold", ha="center")
        for x, size, down in ((2.75, photo, 0), (3.45, result, 1), (4.55, result, 0), (5.25, result, 1),
                              (6.95, photo, 0), (8.15, result, 1)):  # fmt: skip
            arrow(card, *((x, 1.72), (x, 3.3)) if down else ((x, 3.3), (x, 1.72)))
            card.text(x, 3.48, f"{size:.1f} MiB", 9, ha="center")
            card.text(x, 3.72, "written" if down else "read", 9, ha="center", color=MUTED)
        for x, words in ((4.0, f"two kernels: {photo + 3 * result:.1f} MiB"), (7.55, f"one: {photo + result:.1f} MiB")):
            card.text(x, 4.45, words, 12, ha="center", weight="bold")
    return card.figure


def min_opt_max() -> Picture:
    """Draw a range of image sides with what min, opt and max say of it."""
    low, mid, high, y = 2.6, 4.4, 7.1, 1.75
    with style():
        card = Card(9.2, 3.5)
        card.title("Min, opt and max describe the sizes that may come", 16)
        for x, width, fill in ((0.5, low - 0.5, "#E1E5EA"), (low, high - low, RUN[1]), (high, 8.7 - high, "#E1E5EA")):
            card.box(x, y - 0.17, width, 0.34, fill, radius=0.02, zorder=2)
        for x, words in (((0.5 + low) / 2, "refused"), ((high + 8.7) / 2, "refused")):
            card.text(x, y, words, 11, ha="center", color=TEXT)
        card.text((mid + high) / 2, y, "runs as it is", 11, ha="center", color="#FFFFFF")
        for x, name, side in ((low, "min", "224"), (mid, "opt", "512"), (high, "max", "1,024")):
            card.line([x, x], [y - 0.42, y + 0.42], color=TEXT, width=2.2, zorder=3)
            card.text(x, y - 0.82, name, 13, weight="bold", ha="center")
            card.text(x, y - 0.58, side, 11, ha="center", color=MUTED)
        for x, first, second in ((low, "a promise:", "no smaller size"), (mid, "the size", "to be fastest at"),
                                 (high, "memory is", "reserved for it")):  # fmt: skip
            card.text(x, y + 0.66, first, 11, ha="center")
            card.text(x, y + 0.9, second, 11, ha="center")
        card.text(MARGIN, 3.15, "side of the photo, pixels (not to scale)", 10, color=MUTED)
    return card.figure


def int8_sum() -> Picture:
    """Draw the dot product of chapter 05 twice: as the network says it, and as an INT8 kernel computes it."""
    x, w, scales = (0.612, -0.374, 1.106, 0.089), (0.231, -0.118, 0.077, 0.406), (0.02, 0.005)
    codes = [[round(value / scale) for value in side] for side, scale in zip((x, w), scales, strict=True)]
    products = [a * b for a, b in zip(*codes, strict=True)]
    exact = sum(a * b for a, b in zip(x, w, strict=True))
    rows = (
        ("x", [f"{value:.3f}" for value in x], "", EDGE),
        ("w", [f"{value:.3f}" for value in w], f"FP16: sum of x · w = {exact:.3f}", EDGE),
        ("x / 0.02", [str(code) for code in codes[0]], "INT8", QUANTITIES[4]),
        ("w / 0.005", [str(code) for code in codes[1]], "INT8", QUANTITIES[4]),
        ("products", [f"{product:,}" for product in products], f"INT32 sum: {sum(products):,}", QUANTITIES[2]),
    )
    with style():
        card = Card(9.2, 4.15)
        card.title("An INT8 kernel adds integers, and multiplies by the scales once", 15)
        for row, (name, values, says, fill) in enumerate(rows):
            y = 0.85 + 0.5 * row + 0.2 * (row > 1) + 0.1 * (row > 3)
            card.text(MARGIN + 0.05, y + 0.2, name, 12, weight="bold")
            for column, value in enumerate(values):
                card.box(1.55 + 1.05 * column, y, 0.95, 0.4, fill, zorder=2)
                card.text(2.025 + 1.05 * column, y + 0.2, value.replace("-", "\u2212"), 12, ha="center")
            card.text(5.95, y + 0.2, says, 12, weight="bold" if "sum" in says else "normal")
        result = f"{sum(products):,} · 0.02 · 0.005 = {sum(products) * scales[0] * scales[1]:.3f}"
        card.text(5.95, 3.78, result, 12, weight="bold")
        card.text(MARGIN + 0.05, 3.78, "once, after the sum: multiply by both scales", 12, color=MUTED)
    return card.figure


def shortcut() -> Picture:
    """Draw who writes and reads a tensor of a residual network in INT8, with the shortcut in FP16 and in INT8."""
    blue, pink = KINDS["convolution"], KINDS["quantize"]
    with style():
        card = Card(9.2, 4.7)
        card.title("With Q on the shortcut, the kernels move 3 bytes a value and not 8", 15)
        for x, words in ((MARGIN, "shortcut in FP16"), (5.3, "shortcut in INT8")):
            card.text(x + 0.05, 0.85, words, 12, weight="bold")
        boxes = (
            (0.35, 1.1, 4.3, "end of a block: Conv + Add + ReLU", blue), (1.0, 2.45, 1.0, "Q", pink),
            (0.35, 3.65, 2.3, "next Conv", blue), (2.95, 3.65, 1.7, "next Add", blue),
            (5.3, 1.1, 3.55, "Conv + Add + ReLU + Q", blue), (5.3, 3.65, 1.7, "next Conv", blue),
            (7.15, 3.65, 1.7, "next Add", blue),
        )  # fmt: skip
        for x, y, width, words, ink in boxes:
            card.box(x, y, width, 0.5, ink.fill, radius=0.1, zorder=3)
            card.text(x + width / 2, y + 0.25, words, 11.5, color=ink.text, ha="center", weight="bold")
        for x, top, bottom, words in (
            (1.5, 1.6, 2.45, "FP16: writes 2, reads 2"), (1.5, 2.95, 3.65, "INT8: writes 1, reads 1"),
            (3.8, 1.6, 3.65, "FP16: reads 2"), (6.15, 1.6, 3.65, "INT8: writes 1,\nreads 1"),
            (8.0, 1.6, 3.65, "reads 1"),
        ):  # fmt: skip
            arrow(card, (x, top), (x, bottom))
            for line, part in enumerate(words.split("\n")):
                card.text(x + 0.1, (top + bottom) / 2 - 0.03 + 0.22 * line, part, 10, color=MUTED)
        for x, words in ((2.5, "2 + 2 + 1 + 1 + 2 = 8 bytes a value"), (7.07, "1 + 1 + 1 = 3 bytes a value")):
            card.text(x, 4.42, words, 12, ha="center", weight="bold")
    return card.figure


def owners() -> Picture:
    """Draw what builder, runtime, engine and two contexts hold, with the sizes of EfficientNet-Lite0."""
    engine = lab.build(lab.models.efficientnet_lite0().onnx(), gpu=GPU, shapes={"x": (1, 3, 224, 224)})
    weights, activations = (f"{(size or 0) / 2**20:.1f} MiB" for size in (engine.weight_bytes, engine.activation_bytes))
    context = ("shapes of this inference", f"activations, {activations}", "addresses of your buffers")
    boxes = (
        (0.3, 2.3, BUILD, "Builder", "trt.Builder", ("network", "config, profiles")),
        (3.6, 0.85, RUN, "Runtime", "trt.Runtime", ("loads plans",)),
        (3.6, 2.15, RUN, "Engine", "trt.ICudaEngine", (f"weights, {weights}", "kernels, profiles", "never changes")),
        (6.9, 1.35, RUN, "Context 1", "IExecutionContext", context),
        (6.9, 2.95, RUN, "Context 2", "IExecutionContext", context),
    )
    with style():
        card = Card(10.1, 5.1)
        card.title("Weights are there once, activations once for each context", 16)
        for x, y, (fill, ink), name, code, holds in boxes:
            card.box(x, y, 2.75, 0.6 + 0.25 * len(holds), fill, edge=ink, line=1.6, radius=0.1, zorder=3)
            card.text(x + 0.14, y + 0.24, name, 12.5, weight="bold", color=ink)
            card.text(x + 2.63, y + 0.24, code, 8.5, color=ink, ha="right").set_fontfamily("DejaVu Sans Mono")
            for row, words in enumerate(holds):
                card.text(x + 0.14, y + 0.52 + 0.25 * row, words, 11)
        for points in (((3.05, 2.6), (3.32, 2.6), (3.32, 1.25), (3.6, 1.25)), ((5.0, 1.7), (5.0, 2.15)),
                       ((6.35, 2.5), (6.62, 2.5), (6.62, 2.0), (6.9, 2.0)),
                       ((6.35, 3.0), (6.62, 3.0), (6.62, 3.5), (6.9, 3.5))):  # fmt: skip
            arrow(card, *points)
        card.text(3.2, 1.0, "plan", 11.5, weight="bold", ha="right")
        lives = (
            (1.67, 3.62, BUILD, "needed until the plan is written"),
            (4.97, 3.72, RUN, "needed while a context lives"),
            (8.27, 1.12, RUN, "one for each request at a time"),
        )
        for x, y, (_, ink), words in lives:
            card.text(x, y, words, 10.5, ha="center", color=ink)
        card.box(MARGIN, 4.45, card.width - 2 * MARGIN, 0.42, "#F3F4F6", radius=0.1, zorder=1)
        yours = "Yours: the file with the plan, the buffers of inputs and outputs, the streams, the logger"
        card.text(card.width / 2, 4.66, yours, 11, ha="center", color="#3F5D7A")
    return card.figure


def two_streams() -> Picture:
    """Sketch two inferences on two streams: the calls return at once, the GPU works while the CPU is free."""
    cpu, first, second = "#3F5D7A", QUANTITIES[0], QUANTITIES[3]
    rows = (
        (1.25, "CPU", ((2.0, 0.9, "start A", cpu), (3.0, 0.9, "start B", cpu), (4.0, 2.3, "free for other work", ""),
                       (6.4, 2.0, "synchronize", ""))),
        (2.15, "GPU, stream 1", ((2.5, 0.8, "copy A", first), (3.4, 3.3, "kernels of A", first))),
        (3.05, "GPU, stream 2", ((3.5, 0.8, "copy B", second), (4.4, 3.9, "kernels of B", second))),
    )  # fmt: skip
    with style():
        card = Card(9.2, 4.2)
        card.title("The calls return at once; the GPU works while the CPU is free", 16)
        for y, name, parts in rows:
            card.text(MARGIN, y, name, 11, weight="bold")
            for x, wide, words, fill in parts:
                look = {"edge": cpu, "line": 1.2} if not fill else {}
                card.box(x, y - 0.28, wide, 0.56, fill or "#FFFFFF", radius=0.05, zorder=3, **look)
                card.text(x + wide / 2, y, words, 10, ha="center", color="#FFFFFF" if fill else TEXT)
        arrow(card, (2.0, 3.6), (8.6, 3.6))
        card.text(MARGIN, 3.6, "time", 11, color=MUTED)
        note = "A sketch, not measured. How much runs at the same time depends on the GPU and the kernels."
        card.text(MARGIN, 3.95, note, 10, color=MUTED)
    return card.figure


def decision_tree(title: str, note: str, tree: Tree) -> Picture:
    """Draw what to ask, in which order, for each complaint of `tree`; four fit a page in portrait."""
    with style():
        card = Card(8.4, 1.0 + 2.4 * len(tree))
        card.title(title, 17)
        card.text(MARGIN, 0.72, note, 10.5, color=MUTED)
        for band, (complaint, questions) in enumerate(tree):
            top = 0.95 + 2.4 * band
            card.box(MARGIN, top, card.width - 2 * MARGIN, 2.28, BUILD[0], radius=0.1, zorder=1)
            card.text(MARGIN + 0.15, top + 0.22, complaint, 13, weight="bold", color=BUILD[1])
            for column, question in enumerate(questions):
                goes_on = column < len(questions) - 1
                ask(card, MARGIN + 0.1 + 1.95 * column, top + 0.42, BUILD[1], goes_on, *question)
    return card.figure


def ask(card: Card, x: float, y: float, ink: str, goes_on: bool, question: str, ends: str, cure: str) -> None:
    """A question in a white box, below it what to do at the answer that ends the search, and the way on."""
    card.box(x, y, 1.72, 0.72, "#FFFFFF", edge=ink, line=1.4, radius=0.02, zorder=3)
    card.box(x, y + 1.02, 1.72, 0.74, ink, radius=0.1, zorder=3)
    for words, middle, color in ((question, y + 0.36, TEXT), (cure, y + 1.39, "#FFFFFF")):
        lines = textwrap.wrap(words, 23)
        for row, line in enumerate(lines):
            place = middle + 0.19 * (row - (len(lines) - 1) / 2)
            card.text(x + 0.86, place, line, 9, color=color, ha="center", va="center")
    arrow(card, (x + 0.86, y + 0.72), (x + 0.86, y + 1.02))
    card.text(x + 0.93, y + 0.87, ends, 9, color=ink, weight="bold", va="center")
    if goes_on:
        arrow(card, (x + 1.72, y + 0.36), (x + 1.95, y + 0.36))
        other = "yes" if ends == "no" else "no"
        card.text(x + 1.835, y + 0.25, other, 8, color=ink, ha="center", va="bottom")


def left(column: int) -> float:
    """Where the boxes of a column begin."""
    return MARGIN + 0.15 + column * PITCH


def lane(card: Card, y: float, high: float, colors: tuple[str, str], column: int, name: str, where: str) -> None:
    """A coloured band, named from the left edge of `column` on."""
    fill, ink = colors
    card.box(MARGIN, y, card.width - 2 * MARGIN, high, fill, radius=0.12, zorder=1)
    card.text(left(column), y + 0.28, name, 13, weight="bold", color=ink)
    card.text(left(column) + width_of(name, 13, "bold") + 0.18, y + 0.28, where, 12, color=ink)


def draw_box(card: Card, column: int, middle: float, name: str, code: str, does: str) -> None:
    """A rounded box for what works, a white one for data."""
    x, y, data = left(column), middle - HIGH / 2, column == 4 or name == "Model"
    ink = (RUN if middle > 4 else BUILD)[1]
    fill, color, radius = ("#FFFFFF", TEXT, 0.02) if data else (ink, "#FFFFFF", 0.1)
    card.box(x, y, WIDE, HIGH, fill, edge=ink, line=1.6, radius=radius, zorder=3)
    card.text(x + WIDE / 2, y + 0.27, name, 14, weight="bold", color=color, ha="center")
    card.text(x + WIDE / 2, y + 0.53, code, 9.5, color=color, ha="center").set_fontfamily("DejaVu Sans Mono")
    card.text(x + WIDE / 2, y + 0.78, does, 10.5, color=color, ha="center")


def arrow(card: Card, *points: tuple[float, float]) -> None:
    """A line with a head at its last point."""
    card.line([x for x, _ in points], [y for _, y in points], color=TEXT, width=1.8, zorder=2)
    head = {"arrowstyle": "-|>,head_length=0.5,head_width=0.25", "color": TEXT, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
    card.axes.annotate("", xy=points[-1], xytext=points[-2], zorder=2, arrowprops=head)


if __name__ == "__main__":
    main()
