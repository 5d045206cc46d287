"""Draw the pictures that README and chapter 00 show, the same bytes each time: notebooks/pictures/make_pictures.py."""

from __future__ import annotations

from pathlib import Path

import trtlab as lab
from trtlab.draw.frame import MARGIN, Card, Picture, style, width_of
from trtlab.draw.palette import MUTED, TEXT
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


def main() -> None:
    """Write resnet50_fusion.png and workflow.png beside this file."""
    model = lab.models.resnet50().onnx()
    engine = lab.build(model, gpu=GPU, shapes={"x": (1, 3, 224, 224)})
    nodes, kernels = len(engine.fate(model)), len(engine.kernels)
    title = f"ResNet-50 for an {GPU}: {nodes} ONNX nodes become {kernels} kernels"
    write_atomically(HERE / "resnet50_fusion.png", lab.draw.fusion(engine, model, title=title).png())
    write_atomically(HERE / "workflow.png", workflow().png())


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
