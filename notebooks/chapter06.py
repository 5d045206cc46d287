"""The exercises of chapter 06, dynamic shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnx
from ipywidgets import VBox
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from trtlab.draw.frame import Picture, label, plot, style
from trtlab.draw.palette import KINDS, TEXT
from trtlab.errors import BuildError, ProfileError
from trtlab.exercises import Answer, Exercise, a_model
from trtlab.messages import plain
from trtlab.models import transformer_encoder
from trtlab.numerics import run
from trtlab.onnx_model import Model
from trtlab.process import CompilerProcess, Transcript
from trtlab.profiles import Finding, Suggestion, check, read_shapes, suggest
from trtlab.toys import toy
from trtlab.widgets import explorer, slider

BATCHES = (1, 2, 5, 8)


def exercises() -> list[Exercise]:
    """06.1: which profiles build and then fail? 06.2: free a model of its batch. 06.3: three profiles for traffic."""
    return [
        Exercise(
            "06.1",
            (
                "The image is halved and doubled. Which sides come back as they were?",
                "TensorRT checks one of min, opt and max so strictly that the build ends. Which profile does that hit?",
                "A range holds more sizes than its corners; lab.profiles.check(up, four['a']) looks between them.",
            ),
            _built_and_failing,
        ),
        Exercise(
            "06.2",
            (
                "Which weights hold a 2 that is the batch? lab.profiles.check(stuck, …) names one node, then the next.",
                "Reshape computes one size by itself where you write -1.",
                "Shape<end=1>(x) is the batch; Concat it with [1, 16], and Expand the token to that shape.",
            ),
            _freed,
        ),
        Exercise(
            "06.3",
            (
                "The last max must hold the longest request; each min is the max before it, plus one.",
                "Padding is counted in tokens: a cut pays where many requests lie just behind it.",
                "lab.profiles.suggest finds the best cuts for a fixed count=.",
            ),
            _three_profiles,
        ),
    ]


def upsampler() -> onnx.ModelProto:
    """The network of 06.1: an image is halved, doubled and added to itself."""
    return toy(
        "u (float[N,3,H,W] x) => (float[N,3,H,W] y) { d = MaxPool<kernel_shape=[2,2],strides=[2,2]>(x)"
        ' u = Resize<mode="nearest">(d,,scales)  y = Add(u, x) }',
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
        return (
            False,
            "For one of these TensorRT gives no engine at all: which of the three shapes does it work through?",
        )
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
            return (
                False,
                f"At batch {batch} y differs by up to {np.abs(given - truth).max():.2g}: are the weights the same?",
            )
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


def _three_profiles(answer: Any, observed: Any) -> Answer:
    if isinstance(answer, Suggestion):
        return False, "This is the whole suggestion: give its .shapes."
    several = [answer] if isinstance(answer, Mapping) else answer
    if not isinstance(several, list | tuple) or not all(isinstance(one, Mapping) for one in several):
        return False, "Each profile is a dictionary as tokens(1, 18, 32) makes it, and the answer is a list of them."
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
    ranges = [(profile["input_ids"][0][1], profile["input_ids"][2][1]) for profile in profiles]
    odd = [high for _, high in ranges if high % 8]
    if odd:
        return False, f"A max of {odd[0]} is not a multiple of 8."
    lengths = [int(shape[1]) for shape in observed["input_ids"]]
    lost = [length for length in lengths if not any(low <= length <= high for low, high in ranges)]
    if lost:
        return False, f"{len(lost)} of the requests fit no profile, the first has {lost[0]} tokens."
    done = sum(min(high for low, high in ranges if low <= length <= high) for length in lengths)
    padding, most = done / sum(lengths) - 1, 1.05 * suggest(model, observed, multiple=8, count=3).chosen.padding
    said = f"Every request fits, and padding adds {padding:.1%} to the work"
    if padding > most:
        return False, f"{said}: three can do better, at most {most:.1%} is asked for."
    return True, f"{said}; at most {most:.1%} was asked for."


def padding_picture(suggestion: Suggestion, count: int) -> Any:
    """Draw the padding of the suggestion's best cuts into `count` profiles, or into as many as there are."""
    options = suggestion.options
    return padding(replace(suggestion, chosen=options[min(count, len(options)) - 1]))


def padding_explorer(model: Model, observed: Mapping[str, Any], most: int = 8) -> VBox:
    """Controls for the number of profiles and the rounding of their max; each change cuts and draws anew."""

    @cache
    def rounded_to(multiple: int) -> Suggestion:
        return suggest(model, observed, multiple=multiple)

    return explorer(
        lambda count, multiple: padding_picture(rounded_to(multiple), count),
        count=slider("Profiles", range(1, most + 1), 1),
        multiple=slider("Multiple of", (1, 8, 16, 32, 64), 1),
    )


_COLOURS = [ink.fill for ink in KINDS.values()]


def padding(suggestion: Suggestion, title: str | None = None) -> Picture:
    """Draw the observed shapes, each in the colour of its profile: a bar a size, or a dot a shape where two sizes vary.

    Where more than two dimensions vary, the two that vary most are drawn.
    """
    seen, chosen = suggestion.observed, suggestion.chosen
    spread = seen.rows.max(axis=0) / seen.rows.min(axis=0)
    varying = sorted((column for column in range(len(spread)) if spread[column] > 1), key=lambda one: -spread[one])[:2]
    one = suggestion.options[0].padding
    many = len(chosen.profiles)
    found = f"{many} profile{'s' if many > 1 else ''}: {100 * chosen.padding:,.0f}% of the work on top for padding"
    title = title or (found if many == 1 else f"{found}, with one profile {100 * one:,.0f}%")
    requests = f"{seen.weights.sum():,} requests, {len(seen.rows):,} different shapes"
    note = f"{requests}; each is padded to the max of its profile"
    with style():
        card, axes = plot(title, 9.6, 4.3, note=note, left=0.85)
        colours = [_COLOURS[at % len(_COLOURS)] for at in _profile_of(suggestion)]
        if len(varying) == 2:
            _dots(axes, suggestion, (varying[0], varying[1]), colours)
        else:
            _bars(axes, suggestion, varying[0] if varying else 0, colours)
    return card.figure


def _profile_of(suggestion: Suggestion) -> list[int]:
    """For each observed row the first profile whose max holds it."""
    edges = [_edge(suggestion, number) for number in range(len(suggestion.profiles))]
    return [next(at for at, edge in enumerate(edges) if (row <= edge).all()) for row in suggestion.observed.rows]


def _edge(suggestion: Suggestion, number: int) -> np.ndarray:
    profile = suggestion.profiles[number]
    return np.asarray([profile[name][2][axis] for name, axis in suggestion.observed.axes])


def _axis_name(suggestion: Suggestion, column: int) -> str:
    name, axis = suggestion.observed.axes[column]
    return f"dimension {axis} of '{name}'"


def _bars(axes: Axes, suggestion: Suggestion, column: int, colours: list[str]) -> None:
    """A bar a size; a line and the size at the max of each profile."""
    seen = suggestion.observed
    sizes = seen.rows[:, column]
    axes.bar(sizes, seen.weights, width=1.0 if len(sizes) > 1 else 0.4, color=colours)
    wide = sizes.max() > 8 * sizes.min()
    if wide:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.set_xlim(sizes.min() * (0.9 if wide else 0.98), sizes.max() * (1.15 if wide else 1.03))
    top = seen.weights.max() * 1.25
    axes.set_ylim(0, top)
    for number in range(len(suggestion.profiles)):
        edge = int(_edge(suggestion, number)[column])
        axes.axvline(edge, color=_COLOURS[number % len(_COLOURS)], linewidth=1.3)
        place: Any = (edge, top * (0.97 if number % 2 == 0 else 0.9))
        axes.annotate(
            f"≤ {edge}", place, (-3, 0), textcoords="offset points", ha="right", va="top", fontsize=9, color=TEXT
        )
    label(axes, _axis_name(suggestion, column), "requests")


def _dots(axes: Axes, suggestion: Suggestion, columns: tuple[int, int], colours: list[str]) -> None:
    """A dot a shape, as large as it is frequent; a frame up to the max of each profile."""
    seen = suggestion.observed
    x, y = (seen.rows[:, column] for column in columns)
    share = seen.weights / seen.weights.max()
    axes.scatter(x, y, s=8 + 90 * share, c=colours, alpha=0.75, linewidths=0)
    for number in range(len(suggestion.profiles)):
        right, top = (_edge(suggestion, number)[column] for column in columns)
        ink = _COLOURS[number % len(_COLOURS)]
        axes.add_patch(Rectangle((0, 0), right, top, fill=False, edgecolor=ink, linewidth=1.5))
        inside = right > 0.85 * x.max()
        place: Any = ((-2, 3), "right", "bottom") if inside else ((4, -2), "left", "top")
        axes.annotate(f"≤ {right}×{top}", (right, top), place[0], textcoords="offset points", ha=place[1], va=place[2],
                      fontsize=9, color=ink)  # fmt: skip
    axes.set_xlim(0, max(x.max(), 1) * 1.05)
    axes.set_ylim(0, max(y.max(), 1) * 1.12)
    label(axes, _axis_name(suggestion, columns[0]), _axis_name(suggestion, columns[1]), grid="both")
