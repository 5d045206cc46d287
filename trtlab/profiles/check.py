"""Every mistake in a profile before the build, also those that TensorRT builds without a word."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from trtlab.onnx_model import Source, inlined, parse, read_model
from trtlab.profiles.findings import Finding, Findings
from trtlab.profiles.inputs import REFUSES, Input, inputs_of, mistakes
from trtlab.profiles.proposal import Groups, groups_of, point_of, repaired, shapes_at, working
from trtlab.profiles.rules import DATA_DEPENDENT, words
from trtlab.profiles.shapes import Profile, Shapes, read_all
from trtlab.profiles.walk import Trouble, Walk

if TYPE_CHECKING:
    import onnx

    from trtlab.onnx_model import Model

_CORNERS = ("min", "opt", "max")
_ASKED_FIRST = (1, 2, 0)
_AT_OPT = "may refuse ('kOPT values … violate shape constraints'), or take the right size for granted and build"
_AT_EDGE = (
    "builds, at most with a warning ('Profile kMAX values are not self-consistent'); fails when such a size comes"
)
_BETWEEN = "builds without a word; fails when such a size comes"
_TOO_LARGE = "builds without a word, and reports too little memory"
_NO_LAYER = "TensorRT-RTX 1.7 refuses it; full TensorRT builds NonZero and NMS, and only a run tells the output's size"
_CURES = {
    "Reshape": "let the exporter compute the size (-1, or from Shape) instead of writing it down",
    "Concat": "expand the smaller part to the other's sizes before it is joined",
    "Gather": "stay within the rows of the table, or train a longer one",
}


def check(model: Model, shapes: Shapes = None) -> Findings:
    """Every mistake in `shapes` (as build() takes them) for `model`, found without TensorRT.

    The model is walked node by node at the min, opt and max shapes and at a size between them for each dimension.
    Raises ModelError when `model` is no ONNX model; a mistake in the shapes raises nothing.
    """
    proto = read_unhashed(model)
    inputs = inputs_of(proto)
    profiles, findings = read_all(shapes)
    unread = (
        {(one.input, one.profile) for one in findings if one.input not in profiles[one.profile]} if profiles else ()
    )
    findings = [_as_values(one) if one.input in inputs and inputs[one.input].holds_sizes else one for one in findings]
    findings += [one for one in mistakes(profiles, inputs) if (one.input, one.profile) not in unread]
    refused = list(_data_dependent(proto))
    walk = Walk(proto, inputs)
    proposals: list[Profile] = []
    for number, profile in enumerate(profiles or [{}]):
        found, proposal = _of_profile(walk, profile, number)
        findings += found
        proposals += [proposal] if proposal is not None else []
    findings += [*refused, *_across(profiles, inputs)]
    if refused or len(proposals) < len(profiles or [{}]):
        return Findings(tuple(findings), None)
    return Findings(tuple(findings), proposals if len(proposals) > 1 else proposals[0])


def _as_values(finding: Finding) -> Finding:
    """Of values in the wrong order TensorRT complains at once, of shapes only when the profile is added."""
    return replace(finding, tensorrt="set_shape_input() raises") if finding.axis is not None else finding


def read_unhashed(model: Model) -> onnx.ModelProto:
    """The model for looking at only; it is not hashed, which for ResNet-50 would take longer than all the rest."""
    graph = getattr(model, "graph", None)
    if graph is not None and (graph.node or graph.output):
        return inlined(cast("onnx.ModelProto", model))  # no copy: nothing here changes a model
    path = Path(model) if isinstance(model, str | Path) else None
    content = path.read_bytes() if path and path.is_file() else model
    if isinstance(content, bytes) and content:
        return inlined(parse(Source(content, b"not asked for", path)))
    return read_model(model)


def _of_profile(walk: Walk, given: Profile, number: int) -> tuple[list[Finding], Profile | None]:
    """What is wrong with one profile at the nodes, once it fits the inputs, and the nearest one that works."""
    profile = repaired(given, walk.inputs)
    groups = groups_of(profile, walk.inputs)
    findings = [*_disagreements(profile, groups, number), *_empty(profile, number)]
    if any(one.verdict == "fix" for one in findings):
        corners = [shapes_at(profile, groups, corner, point_of(profile, groups, corner)) for corner in range(3)]
        profile = {name: (corners[0][name], corners[1][name], corners[2][name]) for name in profile}
    troubles = _troubles(walk, profile)
    proposal = working(walk, profile, groups) if troubles else profile
    invented = any(profile[name] != given.get(name) for name in profile) and proposal is not None
    for trouble, corners_ in troubles.items():
        if not (invented and (1 not in corners_ or any(name not in given for name in profile))):
            findings.append(_node_finding(trouble, corners_, profile, proposal, groups, number))
    if not troubles:
        findings += _between(walk, profile, groups, number)
    return findings, proposal


def _troubles(walk: Walk, profile: Profile) -> dict[Trouble, list[int]]:
    """Every node that fails at a corner, as it fails at opt, else max, else min; and the corners where it does."""
    found: dict[tuple[str, str, bool], tuple[Trouble, list[int]]] = {}
    for corner in _ASKED_FIRST:
        for trouble in walk.troubles({name: sizes[corner] for name, sizes in profile.items()}):
            place = (trouble.node, trouble.tensor if not trouble.large else "", trouble.large)
            found.setdefault(place, (trouble, []))[1].append(corner)
    large = [place for place in found if place[2]]
    for place in large[1:]:  # after the first tensor that is too large all others say nothing new
        del found[place]
    return dict(found.values())


def _node_finding(
    trouble: Trouble, corners: Sequence[int], profile: Profile, proposal: Profile | None, groups: Groups, number: int
) -> Finding:
    at = corners[0]
    shapes = ", ".join(f"{name} {words(sizes[at])}" for name, sizes in profile.items()) or "its fixed shapes"
    shapes = f"at {_CORNERS[at]}: {shapes}" if profile and len(corners) > 1 else shapes
    every = " and ".join(", ".join(_CORNERS[corner] for corner in sorted(corners)).rsplit(", ", 1))
    every = every if profile else "every run"
    if trouble.large:
        mistake = f"At {every} ({shapes}) {trouble.reason}."
        does = _TOO_LARGE
    else:
        mistake = f"At {every} ({shapes}) node '{trouble.node}' ({trouble.op}) fails: {trouble.reason}."
        does = (_AT_OPT if 1 in corners else _AT_EDGE) if profile else REFUSES
    changed = _changes(profile, proposal, groups) if proposal else {}
    cure = [_CURES[trouble.op]] if trouble.op in _CURES and not trouble.large else []
    runs = (
        [f"use sizes that run: {', '.join(f'{group} {sizes}' for group, sizes in changed.items())}"] if changed else []
    )
    axis = groups[next(iter(changed))][0] if len(changed) == 1 else ("", None)
    return Finding(
        mistake, "; or ".join(runs + cure) or "change the model at this node.", does,
        input=axis[0] or ("" if trouble.node else trouble.tensor), axis=axis[1],
        node=trouble.node, tensor=trouble.tensor, profile=number,
    )  # fmt: skip


def _changes(profile: Profile, proposal: Profile, groups: Groups) -> dict[str, str]:
    """The groups of dimensions that the proposal changes: min … opt … max."""
    ways = [[point_of(one, groups, corner) for corner in range(3)] for one in (profile, proposal)]
    return {
        group: " … ".join(str(point[group]) for point in ways[1])
        for group in groups
        if any(before[group] != after[group] for before, after in zip(*ways, strict=True))
    }


def _between(walk: Walk, profile: Profile, groups: Groups, number: int) -> Iterator[Finding]:
    """Dimensions of which only the multiples of something run, although min, opt and max do."""
    low, opt, high = (point_of(profile, groups, corner) for corner in range(3))
    for group, axes in groups.items():
        size = opt[group]
        way = 1 if size < high[group] else -1

        def fails(step: int, group: str = group, size: int = size, way: int = way) -> tuple[Trouble, ...]:
            return walk.troubles(shapes_at(profile, groups, 1, {group: size + way * step}), first=True)

        trouble = fails(1) if low[group] < high[group] else ()
        steps = [2**n for n in range(1, 8) if low[group] <= size + way * 2**n <= high[group]] if trouble else []
        step = next((step for step in steps if size % step == 0 and not fails(step)), None)
        if trouble and step:
            yield Finding(
                f"Only multiples of {step} run in {_named(group, axes)}: at {size + way} node '{trouble[0].node}' "
                f"({trouble[0].op}) fails: {trouble[0].reason}.",
                f"send no other size, or pad to the next multiple of {step}.", _BETWEEN,
                input=axes[0][0], axis=axes[0][1], node=trouble[0].node, tensor=trouble[0].tensor, profile=number,
                verdict="look",
            )  # fmt: skip


def _named(group: str, axes: Sequence[tuple[str, int]]) -> str:
    return group if group.startswith("dimension") else f"'{group}' (dimension {axes[0][1]} of '{axes[0][0]}')"


def _disagreements(profile: Profile, groups: Groups, number: int) -> Iterator[Finding]:
    """Inputs that share a symbol in the model and do not agree on its sizes."""
    for group, axes in groups.items():
        ranges = {name: tuple(shape[axis] for shape in profile[name]) for name, axis in axes}
        if len(set(ranges.values())) > 1:
            said = ", ".join(f"'{name}' {' … '.join(map(str, sizes))}" for name, sizes in ranges.items())
            differ = len({sizes[1] for sizes in ranges.values()}) > 1
            yield Finding(
                f"The model calls one size of {len(ranges)} inputs '{group}', and their profiles differ: {said}.",
                f"give '{group}' the same min, opt and max everywhere.",
                REFUSES if differ else "builds, with a warning; the sizes that both allow run",
                input=axes[1][0], axis=axes[1][1], profile=number, verdict="fix" if differ else "look",
            )  # fmt: skip


def _empty(profile: Profile, number: int) -> Iterator[Finding]:
    for name, sizes in profile.items():
        if 0 in sizes[0] and 0 not in sizes[1]:
            yield Finding(
                f"Input '{name}': the min shape {sizes[0]} is empty.",
                "give at least 1, unless empty tensors will really come.", "builds",
                input=name, axis=sizes[0].index(0), profile=number, verdict="look",
            )  # fmt: skip


def _data_dependent(model: onnx.ModelProto) -> Iterator[Finding]:
    for node in model.graph.node:
        if node.op_type in DATA_DEPENDENT and not node.domain:
            yield Finding(
                f"How large the output of node '{node.name}' ({node.op_type}) is depends on the data, not on shapes.",
                DATA_DEPENDENT[node.op_type] + ".", _NO_LAYER, node=node.name, tensor=node.output[0],
            )  # fmt: skip


def _across(profiles: Sequence[Profile], inputs: Mapping[str, Input]) -> Iterator[Finding]:
    """Sizes between two profiles that fit none, and profiles that are there twice."""
    whole = [repaired(profile, inputs) for profile in profiles]
    for (one, first), (other, second) in itertools.combinations(enumerate(whole), 2):
        if first == second:
            yield Finding(
                f"Profiles {one} and {other} are the same.", "drop one: each profile has kernels of its own.",
                "builds all kernels twice", profile=other, verdict="look",
            )  # fmt: skip
    for group, axes in groups_of(whole[0], inputs).items() if len(whole) > 1 else ():
        name, axis = axes[0]
        ranges = sorted((profile[name][0][axis], profile[name][2][axis]) for profile in whole)
        reach = ranges[0][1]
        for low, high in ranges[1:]:
            if low > reach + 1:
                yield Finding(
                    f"Sizes {reach + 1} to {low - 1} of {_named(group, axes)} fit no profile.",
                    "widen one of them, unless such sizes never come.", _BETWEEN,
                    input=name, axis=axis, verdict="look",
                )  # fmt: skip
            reach = max(reach, high)
