"""Chapter 06, dynamic shapes: real sentences, its pictures, what TensorRT says to a profile, and its exercises."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import onnx
import torch
from ipywidgets import VBox

from trtlab.draw.frame import MARGIN, Picture, key, label, plot, style
from trtlab.draw.palette import BAR, EDGE, MUTED, TEXT, readable_name
from trtlab.engine import Engine
from trtlab.errors import BuildError, ProfileError
from trtlab.exercises import Answer, Exercise, a_model
from trtlab.messages import plain
from trtlab.models import transformer_encoder
from trtlab.numerics import run
from trtlab.process import CompilerProcess, Transcript
from trtlab.profiles import Finding, Suggestion, check, read_shapes, suggest
from trtlab.toys import toy
from trtlab.widgets import explorer, slider

# --------------------------------------------------------------------------------------------------- tables and traffic


def kernel_facts(engine: Engine) -> tuple[int, str, int]:
    """How many kernels there are, the names of those after the last convolution, how many have no tactic yet."""
    kinds = [kernel.type for kernel in engine.kernels]
    last = len(kinds) - kinds[::-1].index("correlation") if "correlation" in kinds else 0
    names = ", ".join(map(readable_name, engine.kernels[last:]))
    return len(kinds), names, sum(kernel.tactic is None for kernel in engine.kernels)


def profile_facts(engine: Engine) -> tuple[int, float, str]:
    """The kernels of all profiles, the plan's size in MiB, and the activation memory of each profile, from the log."""
    in_all = sum(layer.is_kernel for layer in engine.layers)  # .kernels are those of one profile
    memory = re.findall(r"Total Activation Memory: (\d+)", engine.log) or [str(engine.activation_bytes)]
    each = " · ".join(f"{int(one) / 2**20:.1f}" for one in memory)
    return in_all, round(len(engine.plan_bytes()) / 2**20, 1), each


def sentence_lengths() -> np.ndarray:
    """How many tokens sentences of Python's language reference have, in a random order, the same each time.

    Prose only, each sentence once, a multiple of 64. A token is a word or sign, or marks the beginning or the end.
    """
    paragraphs = [part.splitlines() for text in topics.values() for part in text.split("\n\n")]
    prose = [" ".join(lines) for lines in paragraphs if all(re.match(r"[\w\"'(]", line) for line in lines)]
    found = [one for text in prose for one in re.split(r"(?<=[.!?])\s+", text)]
    sentences = dict.fromkeys(one for one in found if re.fullmatch(r"[A-Z].*[.!?]", one))
    lengths = [len(re.findall(r"\w+|[^\w\s]", one)) + 2 for one in sentences]
    return np.random.default_rng(0).permutation(lengths)[: len(lengths) // 64 * 64]


def in_batches(lengths: np.ndarray, batch: int, waiting: int = 1) -> np.ndarray:
    """A row a batch; `waiting` batches of requests are sorted by length before they are cut."""
    group = batch * waiting
    whole = lengths[: len(lengths) // group * group]
    return np.sort(whole.reshape(-1, group), axis=1).reshape(-1, batch)


def extra_work(batches: np.ndarray) -> float:
    """The work on padding when each row of a batch is as long as its longest, as a share of the work needed."""
    return float(batches.shape[1] * batches.max(axis=1).sum() / batches.sum()) - 1


class FixedNms(torch.nn.Module):
    """NonMaxSuppression with a result of fixed size: k times the best box, while what overlaps it is masked."""

    def forward(
        self, boxes: torch.Tensor, scores: torch.Tensor, k: int = 10, threshold: float = 0.5
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes (100, 4) and scores (1, 100) to the k rows kept and their scores, -1 where no box was left."""
        low, high = torch.maximum(boxes[:, None, :2], boxes[:, :2]), torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
        shared = (high - low).clamp(min=0).prod(-1)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        overlap = shared / (area[:, None] + area - shared)
        kept, found = [], []
        for _ in range(k):
            score, best = scores.max(1, keepdim=True)
            scores = torch.where(overlap[best[0]] > threshold, -torch.ones_like(scores), scores)
            kept, found = [*kept, best], [*found, score]
        return torch.cat(kept, 1), torch.cat(found, 1)


# ------------------------------------------------------------------------------------------------------------- pictures


def memory_by_side(sides: np.ndarray, reserved: np.ndarray, constant: float) -> Picture:
    """Draw the bytes reserved over the pixels of the largest photo, and a line through them from `constant` bytes."""
    x, y, start = sides**2 / 1e6, reserved / 2**20, constant / 2**20
    with style():
        title = f"Memory grows with the pixels of max, and begins at {start:.1f} MiB"
        card, axes = plot(title, 9.2, 4.0, left=0.85, note="EfficientNet-Lite0, one photo")
        axes.plot([0, x[-1]], [start, y[-1]], color=BAR, linewidth=2)
        axes.scatter(x, y, color=TEXT, s=34, zorder=3)
        for across, up, side in zip(x, y, sides, strict=True):
            at, to = ((-8, 5), "right") if side == sides[-1] else ((8, -11), "left")
            words = f"max {side:,}: {up:.1f} MiB"
            axes.annotate(words, (across, up), at, textcoords="offset points", ha=to, fontsize=9.5)
        axes.set(xlim=(0, 1.06 * x[-1]), ylim=(0, 1.12 * y[-1]), xticks=[0.2, 0.4, 0.6, 0.8, 1.0])
        label(axes, "pixels of the largest photo, millions", "activation memory, MiB")
    return card.figure


def two_batches(one: np.ndarray, other: np.ndarray) -> Picture:
    """Draw two batches of sentences, a row each: what is real and what is padding."""
    costs = [extra_work(batch[np.newaxis]) for batch in (one, other)]
    with style():
        title = f"Padding adds {costs[0]:.0%} to this batch as it comes, and {costs[1]:.0%} to that one after sorting"
        card, left = plot(title, 9.2, 3.5, left=0.85, right=4.75, top=1.2)
        right = card.figure.add_axes((5.1 / 9.2, 0.75 / 3.5, 3.6 / 9.2, 1.55 / 3.5), facecolor="none", axisbelow=True)
        right.tick_params(labelsize=9.5, length=0)
        right.spines[["top", "right", "left"]].set_visible(False)
        for axes, batch, name in ((left, one, "eight as they come"), (right, other, "eight of 64, sorted")):
            axes.barh(range(len(batch)), batch.max() - batch, left=batch, height=0.72, color=EDGE)
            axes.barh(range(len(batch)), batch, height=0.72, color=MUTED)
            axes.set(xlim=(0, max(one.max(), other.max()) * 1.02), ylim=(len(batch) - 0.4, -0.6), yticks=[])
            axes.set_title(name, fontsize=10, loc="left")
            label(axes, "tokens", "sentences" if axes is left else "", grid="x")
        key(card, {"real tokens": MUTED, "padding": EDGE}, MARGIN + 0.42)
    return card.figure


def padding_by_batch(lengths: np.ndarray) -> Picture:
    """Draw what padding costs by the size of a batch: as sentences come, and sorted among eight batches."""
    sizes = [1, 2, 4, 8, 16, 32]
    lines = {"as they come": (1, TEXT), "sorted among eight batches": (8, BAR)}
    with style():
        title = "Larger batches pad more; sorting the queue takes most of it back"
        card, axes = plot(title, 9.2, 3.6, left=0.85, right=2.3)
        for name, (waiting, color) in lines.items():
            costs = [100 * extra_work(in_batches(lengths, size, waiting)) for size in sizes]
            axes.plot(range(len(sizes)), costs, color=color, marker="o", linewidth=2)
            axes.annotate(
                name, (len(sizes) - 1, costs[-1]), (8, 0), textcoords="offset points", fontsize=9.5, va="center"
            )
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axes.set_ylim(bottom=0)
        label(axes, "sentences in a batch", "work on padding, %")
    return card.figure


def padding(suggestion: Suggestion, title: str = "") -> Picture:
    """Draw how often each size came, the max of each profile, and what padding to it costs.

    Where more than one dimension varies, the one that varies most is drawn.
    """
    seen, chosen, one = suggestion.observed, suggestion.chosen, suggestion.options[0].padding
    column = int((seen.rows.max(axis=0) / seen.rows.min(axis=0)).argmax())
    sizes, (name, axis) = seen.rows[:, column], seen.axes[column]
    edges = sorted(profile[name][2][axis] for profile in chosen.profiles)
    found = f"{len(edges)} profile{'s' * (len(edges) > 1)}: {100 * chosen.padding:,.0f}% more work for padding"
    title = title or (found if len(edges) == 1 else f"{found}; with one profile {100 * one:,.0f}%")
    note = f"{seen.weights.sum():,} requests, each padded to the max of its profile (the number at its line)"
    with style():
        card, axes = plot(title, 9.2, 3.9, note=note, left=0.85)
        greys = [(MUTED, BAR)[np.searchsorted(edges, size) % 2] for size in sizes]
        axes.bar(sizes, seen.weights, width=0.9, color=greys)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
        top = seen.weights.max() * 1.5
        axes.set(xlim=(sizes.min() * 0.9, edges[-1] * 1.1), ylim=(0, top))
        for number, edge in enumerate(edges):
            axes.axvline(edge, color=TEXT, linewidth=1.1, linestyle=(0, (4, 3)))
            at = (edge, top * (0.98 - 0.1 * (number % 3)))
            axes.annotate(f"≤ {edge}", at, (-4, 0), textcoords="offset points", ha="right", va="top", fontsize=9.5)
        label(axes, f"size of dimension {axis} of '{name}'", "requests")
    return card.figure


def queue_picture(lengths: np.ndarray, batch: int, waiting: int, buckets: int) -> Picture:
    """Draw the longest sentence of each batch, cut into `buckets` fixed lengths, and say what all padding costs."""
    batches = in_batches(lengths, batch, waiting)
    observed = {"input_ids": [(batch, int(longest)) for longest in batches.max(axis=1)]}
    found = suggest(transformer_encoder().onnx(), observed, multiple=8, count=buckets)
    own, all_of_it = extra_work(batches), (1 + extra_work(batches)) * (1 + found.chosen.padding) - 1
    return padding(found, f"{all_of_it:,.0%} more work: {own:.0%} inside the batches, the rest up to the fixed lengths")


def queue_explorer(lengths: np.ndarray) -> VBox:
    """Controls for the size of a batch, how many batches wait and are sorted, and the number of fixed lengths."""
    return explorer(
        lambda batch, waiting, buckets: queue_picture(lengths, batch, waiting, buckets),
        batch=slider("Batch", (1, 2, 4, 8, 16, 32), 8),
        waiting=slider("Waiting", (1, 2, 4, 8, 16), 1),
        buckets=slider("Lengths", range(1, 9), 4),
    )


# -------------------------------------------------------------------------------------- what TensorRT says to a profile

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

    @property
    def said(self) -> str:
        """TensorRT's own words: the first error, or the first warning about the profile; "" when there is none."""
        return " ".join(map(plain, (*self.errors, *self.warnings)[:1]))

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


# ------------------------------------------------------------------------------------------------------------ exercises

BATCHES = (1, 2, 5, 8)


def exercises() -> list[Exercise]:
    """06.1: which profiles build and then fail? 06.2: free a model of its batch. 06.3: three profiles for traffic."""
    return [
        Exercise(
            "06.1",
            (
                "Which sides come back unchanged when an image is halved and then doubled?",
                "Write down for each profile the sides that fail. Is one of them min, opt or max?",
                "The three rules above the exercises say what TensorRT does at opt, at min and max, and between them.",
            ),
            _built_and_failing,
        ),
        Exercise(
            "06.2",
            (
                "Two constants of this model hold the batch of the export. Which two, and at which place?",
                "For the Reshape: ONNX lets one size of the new shape be computed. How is that written?",
                "For the Concat: the token needs as many rows as x has. Which operator reads a shape, and which one"
                " repeats a tensor until it has a given shape?",
            ),
            _freed,
        ),
        Exercise(
            "06.3",
            (
                "Three max are to be chosen. One of them is decided by the longest batch alone: which?",
                "A histogram of the lengths helps: where are most batches, and where are the few long ones?",
                "A batch pays the distance from its length to the next max. Add that up for one choice. Which other"
                " choices could a loop try?",
            ),
            _three_profiles,
        ),
    ]


def upsampler() -> onnx.ModelProto:
    """The network of 06.1: an image is halved, doubled and added to itself."""
    return toy(
        "up (float[1,3,H,W] x) => (float[1,3,H,W] y) { half = MaxPool<kernel_shape=[2,2],strides=[2,2]>(x)"
        ' whole = Resize<mode="nearest">(half,,scales)  y = Add(whole, x) }',
        scales=[1.0, 1.0, 2.0, 2.0],
    )


FOUR = {"a": (16, 32, 64), "b": (16, 33, 64), "c": (16, 32, 65), "d": (32, 32, 32)}  # min, opt, max side
_IN_WORDS = {"no engine": "no engine", "a line in the log": "built, with a line in the log", "not a word": "built"}


def _built_and_failing(answer: Iterable[str]) -> Answer:
    letters = {sign for sign in "".join(map(str, answer)).lower() if sign.isalnum()}  # "a, c" is {"a", "c"}
    unknown = sorted(letters - set(FOUR))
    if unknown:
        return False, f"There is no profile {unknown[0]!r}: give the letters of `four`."
    told, sides = _told_and_failing_sides()
    built = {letter for letter, one in told.items() if one.built}
    failing = {letter for letter, ones in sides.items() if any(ones)}
    if not letters:
        return False, "You named none, but some of them are built although a size of their range fails."
    if letters - built:
        return False, "For one of these TensorRT gives no engine at all. At which of the three shapes is it strict?"
    if letters - failing:
        return False, "In one of these every size of the range runs: how many sizes does it hold?"
    missing = sorted((built & failing) - letters)
    if missing:
        logged = told[missing[0]].outcome == "a line in the log"
        why = "a line in the log is no refusal" if logged else "look also at the sizes that are no corner"
        return False, f"What you named is right, but not all: {why}."
    each = [f"{key}: {_IN_WORDS[one.outcome]}, {_share(sides[key])}" for key, one in told.items()]
    return True, f"Right: only what fails at opt ends the build. {'; '.join(each)}."


@cache
def _told_and_failing_sides() -> tuple[dict[str, ProfileResponse], dict[str, list[bool]]]:
    """What TensorRT says to each of FOUR, and which of its sides fail."""
    model = upsampler()
    shapes = [{"x": tuple((1, 3, side, side) for side in sides)} for sides in FOUR.values()]
    told = dict(zip(FOUR, try_profiles([(model, one) for one in shapes]), strict=True))
    fails = {side: bool(len(check(model, {"x": (1, 3, side, side)}))) for side in range(16, 66)}
    sides = {letter: [fails[side] for side in range(low, high + 1)] for letter, (low, _, high) in FOUR.items()}
    return told, sides


def _share(fails: Sequence[bool]) -> str:
    if len(fails) == 1:
        return "its only side fails" if fails[0] else "its only side runs"
    return f"{sum(fails)} of its {len(fails)} sides fail"


def stuck() -> onnx.ModelProto:
    """The network of 06.2: a token and a Reshape that know the batch of the export."""
    return toy(
        "stuck (float[N,8,16] x) => (float[N,32] y)"
        " { c = Concat<axis=1>(cls, x)   r = Reshape(c, flat)   y = MatMul(r, w) }",
        cls=(2, 1, 16), flat=[2, 144], w=(144, 32),
    )  # fmt: skip


def _freed(answer: onnx.ModelProto) -> Answer:
    a_model(answer)
    names = [[value.name for value in ports] for ports in (answer.graph.input, answer.graph.output)]
    weights = {tensor.name for tensor in answer.graph.initializer}
    if [[name for name in names[0] if name not in weights], names[1]] != [["x"], ["y"]]:
        return False, "The model should take x and give y, nothing else."
    for batch in BATCHES:
        for finding in check(answer, {"x": (batch, 8, 16)}):
            return False, _at_batch(batch, finding)
    numbers = np.random.default_rng(0).normal(size=(max(BATCHES), 8, 16)).astype(np.float32)
    for batch in BATCHES:
        x = numbers[:batch]
        given, truth = run(answer, {"x": x})["y"], _truth(x)
        if given.shape != truth.shape:
            return False, f"At batch {batch} y has the shape {given.shape}, it should be {truth.shape}."
        if not np.allclose(given, truth, atol=1e-4):
            off = np.abs(given - truth).max()
            return False, f"At batch {batch} y differs by up to {off:.2g}: are the weights the same?"
    return True, "Every batch from 1 to 8 runs, with the same numbers."


def _at_batch(batch: int, finding: Finding) -> str:
    """What fails at a batch; a mistake that is at no node is told as it is."""
    if not finding.node:
        return finding.mistake
    return f"At batch {batch} node '{finding.node}' fails: {finding.mistake.partition(' fails: ')[2]}"


def _truth(x: np.ndarray) -> np.ndarray:
    """What the stuck model gives to each row when the row's token is the first one."""
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in stuck().graph.initializer}
    token = np.broadcast_to(weights["cls"][:1], (len(x), 1, 16))
    product: np.ndarray = np.concatenate([token, x], axis=1).reshape(len(x), 144) @ weights["w"]
    return product


def _three_profiles(answer: Any, longest: Any) -> Answer:
    """`longest` holds the longest sentence of each batch of eight."""
    if isinstance(answer, Suggestion):
        return False, "This is the whole suggestion: give its .shapes."
    several = [answer] if isinstance(answer, Mapping) else answer
    if not isinstance(several, list | tuple) or not all(isinstance(one, Mapping) for one in several):
        return False, "The answer is a list of dictionaries, each as tokens(1, 16, 32) makes it."
    model = transformer_encoder().onnx()
    try:
        profiles = read_shapes(answer)
    except ProfileError as error:
        return False, error.message
    if not 1 <= len(profiles) <= 3:
        return False, f"Your server holds one to three profiles, not {len(profiles)}."
    found = check(model, profiles)
    if not found.ok:
        return False, next(finding.mistake for finding in found if finding.verdict == "fix")
    if any(low[0] > 8 or high[0] != 8 for profile in profiles for low, _, high in [profile["input_ids"]]):
        return False, "Each batch has eight rows, so the first size of each max is 8."
    ranges = sorted((high[1], low[1]) for profile in profiles for low, _, high in [profile["input_ids"]])
    odd = [high for high, _ in ranges if high % 8]
    if odd:
        return False, f"A max of {odd[0]} is not a multiple of 8."
    homes = [next((high for high, low in ranges if low <= length <= high), 0) for length in longest]
    if lost := [int(length) for length, home in zip(longest, homes, strict=True) if not home]:
        return False, f"{len(lost)} of the batches fit no profile, the first has {lost[0]} tokens in a row."
    padding = sum(homes) / sum(longest) - 1
    shapes = {"input_ids": [(8, int(length)) for length in longest]}
    most = 1.05 * suggest(model, shapes, multiple=8, count=3).chosen.padding
    said = f"Every batch fits, and padding adds {padding:.1%} to the work"
    if padding <= most:
        return True, f"{said}; at most {most:.1%} was asked for."
    waste = {high: sum(home - length for home, length in zip(homes, longest, strict=True) if home == high)
             for high, _ in ranges}  # fmt: skip
    worst = max(waste, key=lambda high: waste[high])
    share = waste[worst] / sum(waste.values())
    return False, f"{said}; at most {most:.1%} is asked for. {share:.0%} of the padding goes up to {worst}."
