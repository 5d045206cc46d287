"""The bytes each kernel reads and writes, as bars in the order the GPU runs them."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes

from trtlab.draw.frame import MARGIN, Card, Picture, clean, fit, message, number, style, unit_of, width_of
from trtlab.draw.fusion import footer
from trtlab.draw.palette import BYTES, EDGE, MUTED, readable_name
from trtlab.engine import Engine, Layer

_NAMED = 24  # with more kernels than this the names of all do not fit


_ROW = 0.27  # inches a named bar


def memory(engine: Engine) -> Picture:
    """Draw what each kernel reads (inputs, constants) and writes (outputs) in bytes.

    Sizes are logical, without padding and caches; a table from which a kernel gathers rows counts whole.
    Needs fixed shapes: where a size is known only at run time, the picture says so instead.
    """
    kernels = engine.kernels
    if not kernels:
        return message("This engine has no layers to draw", ["Build with ProfilingVerbosity.DETAILED to see them."])
    unknown = sum(layer.nbytes is None for layer in kernels)
    if unknown:
        return message(
            f"The bytes of {unknown} of {len(kernels)} kernels depend on shapes that are not fixed",
            [
                "Build with fixed shapes to see bytes:",
                f"lab.build(model, shapes={{{_fixed(engine)}}})",
            ],
        )
    with style():
        return _rows(engine) if len(kernels) <= _NAMED else _columns(engine)


def _fixed(engine: Engine) -> str:
    """The shapes argument that fixes every dynamic input, at the optimum of the first profile or at 1."""
    found = []
    for port in engine.ports:
        if port.mode == "Input" and -1 in port.shape:
            shape = port.profiles[0][1] if port.profiles else tuple(max(size, 1) for size in port.shape)
            found.append(f"{clean(port.name, 40)!r}: {shape}")
    return ", ".join(found)


@dataclass(frozen=True)
class _Bar:
    """A kernel's name and its bytes: inputs, constants, outputs."""

    name: str
    parts: tuple[int, int, int]

    @property
    def total(self) -> int:
        return sum(self.parts)


def _bar(layer: Layer) -> _Bar:
    inputs, constants, outputs = (
        sum(tensor.nbytes or 0 for tensor in group) for group in (layer.inputs, layer.constants, layer.outputs)
    )
    return _Bar(clean(readable_name(layer), 34), (inputs, constants, outputs))


def _head(engine: Engine, bars: list[_Bar], width: float, height: float) -> tuple[Card, int, str]:
    """A card with title, facts, key and footer; the unit of the bars and its name."""
    total = sum(bar.total for bar in bars)
    unit, name = unit_of(total)
    card = Card(width, height)
    verb = "kernel reads and writes" if len(bars) == 1 else "kernels read and write"
    title = f"{len(bars)} {verb} {number(total / unit)} {name} a run"
    card.title(title)
    largest = sorted((bar.total for bar in bars), reverse=True)[:5]
    share = 100 * sum(largest) / (total or 1)
    facts = [f"the largest {len(largest)} account for {share:.0f}%"] if len(bars) > 9 else []
    for words, size in (("weights", engine.weight_bytes), ("activations", engine.activation_bytes)):
        if size is not None:
            facts.append(f"{words} in memory {number(size / unit_of(size)[0])} {unit_of(size)[1]}")
    card.text(MARGIN, MARGIN + 0.43, fit("   ·   ".join(facts), width - 2 * MARGIN, 10), 10, color=MUTED, gid="notes")
    x = MARGIN
    for index, (part, color) in enumerate(BYTES.items()):
        words = f"{part}: {number(sum(bar.parts[index] for bar in bars) / unit)} {name}"
        card.box(x, MARGIN + 0.65, 0.14, 0.14, color, radius=0.03)
        card.text(x + 0.2, MARGIN + 0.72, words, 9, va="center", gid="key")
        x += 0.4 + width_of(words, 9)
    card.line([MARGIN, width - MARGIN], [height - 0.38, height - 0.38])
    card.text(MARGIN, height - 0.2, fit(footer(engine), width - 2 * MARGIN, 8.5), 8.5, color=MUTED, gid="footer")
    return card, *unit_of(max(bar.total for bar in bars))


def _rows(engine: Engine) -> Picture:
    """A horizontal bar with its name for each of a few kernels."""
    bars = [_bar(layer) for layer in engine.kernels]
    room = max(width_of(bar.name, 9) for bar in bars) + 0.15
    width, top = 10.0, MARGIN + 1.1
    card, unit, name = _head(engine, bars, width, top + _ROW * len(bars) + 0.55)
    left, right = MARGIN + room, width - MARGIN - 0.75
    scale = (right - left) / max(1, *(bar.total for bar in bars))
    for row, bar in enumerate(bars):
        y, x = top + row * _ROW, left
        card.text(left - 0.1, y + _ROW / 2, bar.name, 9, ha="right", va="center", gid="name")
        for size, color in zip(bar.parts, BYTES.values(), strict=True):
            card.box(x, y + 0.03, size * scale, _ROW - 0.06, color, radius=0.0)
            x += size * scale
        card.text(x + 0.07, y + _ROW / 2, f"{number(bar.total / unit)} {name}", 9, va="center", gid="bytes")
    card.line([left, left], [top - 0.03, top + _ROW * len(bars) + 0.03], zorder=3)
    return card.figure


def _columns(engine: Engine) -> Picture:
    """A narrow upright bar for each of many kernels; the largest carry a name."""
    bars = [_bar(layer) for layer in engine.kernels]
    width, height = 13.0, 5.2
    card, unit, name = _head(engine, bars, width, height)
    axes = card.figure.add_axes((0.65 / width, 0.95 / height, (width - 1.0) / width, (height - 2.5) / height))
    base = [0.0] * len(bars)
    places = range(1, len(bars) + 1)
    for part, color in enumerate(BYTES.values()):
        sizes = [bar.parts[part] / unit for bar in bars]
        axes.bar(places, sizes, bottom=base, color=color, width=0.8, zorder=2)
        base = [low + size for low, size in zip(base, sizes, strict=True)]
    axes.set_facecolor("none")
    axes.set_xlim(0.3, len(bars) + 0.7)
    top = max(base) * 1.08 or 1
    axes.set_ylim(0, top)
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= top])
    step = 10 if len(bars) <= 120 else 20 if len(bars) <= 400 else 100
    axes.set_xticks([1, *range(step, len(bars) + 1, step)])
    axes.set_ylabel(name, fontsize=10)
    axes.set_xlabel("kernel, in the order the GPU runs them", fontsize=10)
    axes.tick_params(labelsize=9, length=0)
    axes.grid(axis="y", color=EDGE, zorder=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    _name_largest(card, axes, bars, unit)
    return card.figure


def _name_largest(card: Card, axes: Axes, bars: list[_Bar], unit: int) -> None:
    """Write the names over the largest bars, as many as find room beside each other."""
    taken: list[tuple[float, float]] = []
    frame = axes.get_position()
    for index in sorted(range(len(bars)), key=lambda place: -bars[place].total)[:8]:
        center = (frame.x0 + frame.width * (index + 0.7) / (len(bars) + 0.4)) * card.width
        words = f"{index + 1}  {bars[index].name}"
        half = width_of(words, 8.5) / 2 + 0.06
        middle = min(max(center, MARGIN + half), card.width - MARGIN - half)
        if len(taken) < 6 and all(abs(middle - other) > half + wide for other, wide in taken):
            taken.append((middle, half))
            top = card.height * (1 - frame.y1) - 0.04
            card.text(middle, top - 0.1, words, 8.5, ha="center", gid="name")
            height = frame.height * card.height * bars[index].total / unit / axes.get_ylim()[1]
            card.line([center, center], [top, card.height * (1 - frame.y0) - height], color=MUTED, width=0.7)
