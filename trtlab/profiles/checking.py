"""Every mistake in a profile before the build, also those that TensorRT builds without a word."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from trtlab.export_checks import DATA_DEPENDENT
from trtlab.messages import table
from trtlab.onnx_model import Model, read_model
from trtlab.profiles.guessing import first_guess, near, nearest
from trtlab.profiles.running import Failure, Sizes, Trials
from trtlab.shapes import REFUSES, Finding, Findings, Profile, Shapes, give_sizes, input_mistakes, read_all
from trtlab.tables import shape_text

_CORNERS = ("min", "opt", "max")
_AT_OPT = "may refuse ('kOPT values … violate shape constraints'), or take the right size for granted and build"
_AT_EDGE = (
    "builds, at most with a warning ('Profile kMAX values are not self-consistent'); fails when such a size comes"
)
_SEEN = "not asked: ONNX Runtime cannot run it; TensorRT refuses most such nodes, and builds some, such as a Gather"
_BETWEEN = "builds without a word; fails when such a size comes"
_TOO_LARGE = "builds without a word, and reports too little memory"
_NO_LAYER = "TensorRT-RTX 1.7 refuses it; full TensorRT builds NonZero and NMS, and only a run tells the output's size"


def check(model: Model, shapes: Shapes = None) -> Findings:
    """Every mistake in `shapes` (as build() takes them) for `model`, found without TensorRT.

    ONNX Runtime judges the model at the min, opt and max shapes and at a size between them for each dimension, and
    runs what takes a moment. Raises ModelError when `model` is no ONNX model; a mistake in the shapes raises nothing.
    """
    trials = Trials(read_model(model))
    inputs, (profiles, findings) = trials.inputs, read_all(shapes)
    unread = {(one.input, one.profile) for one in findings if one.input}
    findings += [one for one in input_mistakes(profiles, inputs) if (one.input, one.profile) not in unread]
    tried = [_of_profile(trials, given, number) for number, given in enumerate(profiles or [{}])]
    refused = list(_data_dependent(trials))
    across = _across([first_guess(inputs, one) for one in profiles], trials)
    findings += [*itertools.chain.from_iterable(found for found, _ in tried), *refused, *across]
    working = [proposal for _, proposal in tried if proposal is not None and not refused]
    proposal = None if len(working) < len(tried) else working if len(working) > 1 else working[0]
    return Findings(tuple(_with_sizes(one, trials, tried) for one in findings), proposal)


def _with_sizes(finding: Finding, trials: Trials, tried: Sequence[tuple[list[Finding], Profile | None]]) -> Finding:
    """The finding, and where it is that sizes are missing, some that run."""
    port, found = trials.inputs.get(finding.input), tried[finding.profile][1]
    lacks = port and found and finding.fix == give_sizes(port)
    return replace(finding, fix=give_sizes(port, found[port.name])) if port and found and lacks else finding


def _of_profile(trials: Trials, given: Profile, number: int) -> tuple[list[Finding], Profile | None]:
    """What is wrong with one profile at the nodes, once it fits the inputs, and the nearest one that works."""
    profile = first_guess(trials.inputs, given)
    findings, asked = list(_disagreements(trials, profile, number)), trials.corners(profile)
    failures: dict[tuple[str, bool], tuple[Failure, list[int]]] = {}
    for corner in (1, 2, 0):
        if failure := trials.failure(asked[corner]):
            failures.setdefault((failure.node, failure.large), (failure, []))[1].append(corner)
    opt = asked[1] if given or not failures else near(trials, asked[1])  # what was guessed may be far from what runs
    running = nearest(trials, [asked[0], opt, asked[2]]) if failures else asked
    if not failures:
        findings += _between(trials, asked, number)
    elif running is None or profile.keys() <= given.keys():  # else the sizes that fail are not the reader's
        findings += [_node_finding(trials, *one, asked, running or asked, number) for one in failures.values()]
    return findings, trials.profile(running) if running else None


def _node_finding(
    trials: Trials, failure: Failure, corners: list[int], asked: list[Sizes], running: list[Sizes], number: int
) -> Finding:
    """What fails at which of min, opt and max, and which sizes would run."""
    first, name, axis = corners[0], "" if failure.node else failure.tensor, None
    shapes = ", ".join(f"{name} {shape_text(shape)}" for name, shape in trials.shapes(asked[first]).items())
    shapes = f"at {_CORNERS[first]}: {shapes}" if shapes and len(corners) > 1 else shapes
    every = " and ".join(", ".join(_CORNERS[corner] for corner in sorted(corners)).rsplit(", ", 1))
    place = f"At {every} ({shapes})" if shapes else "At every run"
    said = failure.reason if failure.large else f"node '{failure.node}' ({failure.op}) fails: {failure.reason}"
    does = _TOO_LARGE if failure.large else _SEEN if not shapes else _AT_OPT if 1 in corners else _AT_EDGE
    before, after = ({group: [sizes[group] for sizes in one] for group in trials.groups} for one in (asked, running))
    changed = [group for group in trials.groups if before[group] != after[group]]
    if len(changed) == 1:
        name, axis = trials.groups[changed[0]][0]
    sizes = ", ".join(f"{group} {_words(after[group])}" for group in changed)
    fixes = [f"use sizes that run: {sizes}"] if changed else []
    fixes += (
        [table()["cures"].get(failure.op, "")]
        if not failure.large
        else ["compute it in parts, or reduce it before it grows"]
    )
    fix = (
        "; or ".join(filter(None, fixes))
        or f"change what '{failure.node}' reads, or its attributes, until these agree."
    )
    return Finding(f"{place} {said}.", fix, does, name, axis, failure.node, failure.tensor, number)


def _between(trials: Trials, asked: list[Sizes], number: int) -> Iterator[Finding]:
    """Dimensions of which only the multiples of something run, although min, opt and max do."""
    least, opt, most = asked
    for group, size in opt.items():
        low, high, way = least[group], most[group], 1 if size < most[group] else -1
        odd = trials.failure({**opt, group: size + way}) if low < high else None
        steps = [step for step in (2, 4, 8, 16, 32, 64, 128) if low <= size + way * step <= high and size % step == 0]
        step = next((step for step in steps if odd and not trials.failure({**opt, group: size + way * step})), None)
        if odd and step:
            at = f"at {size + way} node '{odd.node}' ({odd.op}) fails: {odd.reason}"
            mistake = f"Only multiples of {step} run in {_title(trials, group)}: {at}."
            fix = f"send no other size, or pad to the next multiple of {step}."
            yield Finding(mistake, fix, _BETWEEN, *trials.groups[group][0], odd.node, odd.tensor, number, "look")


def _title(trials: Trials, group: str) -> str:
    name, axis = trials.groups[group][0]
    return group if group.startswith("dimension") else f"'{group}' (dimension {axis} of '{name}')"


def _disagreements(trials: Trials, profile: Profile, number: int) -> Iterator[Finding]:
    """Inputs that share a symbol in the model and do not agree on its sizes."""
    for group, places in trials.groups.items():
        ranges = {name: tuple(shape[axis] for shape in profile[name]) for name, axis in places}
        if len(set(ranges.values())) > 1:
            differ = len({sizes[1] for sizes in ranges.values()}) > 1
            said = ", ".join(f"'{name}' {_words(sizes)}" for name, sizes in ranges.items())
            mistake = f"The model calls one size of {len(ranges)} inputs '{group}', and their profiles differ: {said}."
            fix = f"give '{group}' the same min, opt and max everywhere."
            does = REFUSES if differ else "builds, with a warning; the sizes that both allow run"
            yield Finding(mistake, fix, does, *places[1], profile=number, verdict="fix" if differ else "look")


def _words(sizes: Sequence[int]) -> str:
    return " … ".join(map(str, sizes))


def _data_dependent(trials: Trials) -> Iterator[Finding]:
    for node in trials.model.graph.node:
        if node.op_type in DATA_DEPENDENT and not node.domain:
            how = f"How large the output of node '{node.name}' ({node.op_type}) is depends on the data, not on shapes."
            yield Finding(how, DATA_DEPENDENT[node.op_type], _NO_LAYER, node=node.name, tensor=node.output[0])


def _across(profiles: Sequence[Profile], trials: Trials) -> Iterator[Finding]:
    """Sizes between two profiles that fit none, and profiles that are there twice."""
    for (one, first), (other, second) in itertools.combinations(enumerate(profiles), 2):
        if first == second:
            mistake, fix = f"Profiles {one} and {other} are the same.", "drop one: each has kernels of its own."
            yield Finding(mistake, fix, "builds all kernels twice", profile=other, verdict="look")
    for group, [(name, axis), *_] in trials.groups.items() if len(profiles) > 1 else ():
        ranges = sorted((profile[name][0][axis], profile[name][2][axis]) for profile in profiles)
        reaches = itertools.accumulate((high for _, high in ranges), max)
        for reach, (low, _) in zip(reaches, ranges[1:], strict=False):
            if low > reach + 1:
                mistake = f"Sizes {reach + 1} to {low - 1} of {_title(trials, group)} fit no profile."
                fix = "widen one of them, unless such sizes never come."
                yield Finding(mistake, fix, _BETWEEN, name, axis, verdict="look")
