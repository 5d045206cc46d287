"""profiles.check finds every mistake before the build, with what TensorRT and ONNX Runtime really do as the judges."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from chapter06 import ProfileResponse, try_profiles
from profile_mistakes import ADD, CONV, EXPAND, GOOD, MISTAKES, RESIZE, SKIP, TABLE, WIDE_TABLE, Mistake, rows, sides, t
from tiny_models import branches, loop

import trtlab as lab
from trtlab.building import build_each
from trtlab.errors import ModelError, ProfileError
from trtlab.profiles import check, guess, read_shapes
from trtlab.profiles.running import Trials
from trtlab.shapes import Findings, check_profiles, inputs_of
from trtlab.toys import unchecked

NAMES = [mistake.name for mistake in MISTAKES]
AT_NODES = [one for one in MISTAKES if one.node and "2^31" not in one.name and one.name not in ("NonZero", "… between")]


@pytest.fixture(scope="module")
def told() -> dict[str, ProfileResponse]:
    """What TensorRT says to every mistake."""
    return dict(zip(NAMES, try_profiles([(one.model(), one.shapes) for one in MISTAKES]), strict=True))


@pytest.fixture(scope="module")
def found() -> dict[str, Findings]:
    """What check() says to every mistake."""
    return {one.name: check(one.model(), one.shapes) for one in MISTAKES}


@pytest.mark.parametrize("mistake", MISTAKES, ids=NAMES)
def test_every_mistake_is_found_and_placed(mistake: Mistake, found: dict[str, Findings]) -> None:
    hits = [finding for finding in found[mistake.name] if mistake.says in finding.mistake]
    assert hits, str(found[mistake.name])
    assert hits[0].fix
    assert hits[0].tensorrt
    assert hits[0].node == mistake.node
    assert hits[0].tensor if mistake.node else hits[0].input or "the same" in hits[0].mistake
    assert mistake.says.split("'")[0] in found[mistake.name]._repr_html_().replace("&#x27;", "'")


@pytest.mark.parametrize("name", NAMES)
def test_a_finding_promises_a_refusal_only_where_tensorrt_refuses(
    name: str, told: dict[str, ProfileResponse], found: dict[str, Findings]
) -> None:
    if any(not finding.silent for finding in found[name]):
        assert told[name].refused, told[name]
    if told[name].outcome == "not a word":
        assert any(finding.silent for finding in found[name])
    for call in ("set_shape", "add_optimization_profile"):
        if found[name][0].tensorrt.startswith(call):
            assert str(told[name]).startswith(call), told[name]


@pytest.mark.parametrize("mistake", MISTAKES, ids=NAMES)
def test_a_build_that_fails_says_what_check_says(mistake: Mistake, found: dict[str, Findings]) -> None:
    (built,) = build_each(mistake.model(), [mistake.shapes])
    if isinstance(built, lab.BuildError) and built.stage != "parse":  # where the parser stops, no size matters
        told = [one for one in found[mistake.name] if one.mistake in built.message]
        assert told, built
        assert (built.diagnosis.cause, built.diagnosis.fix) == (told[0].mistake, told[0].fix)


@pytest.mark.slow
def test_every_proposal_is_free_of_mistakes_and_builds(found: dict[str, Findings]) -> None:
    proposed = []
    for mistake in MISTAKES:
        proposal = found[mistake.name].proposal
        if proposal is None:
            assert mistake.name in ("NonZero", "NonMaxSuppression")
            continue
        assert check(mistake.model(), proposal).ok, mistake.name
        proposed.append((mistake.model(), proposal))
    for answer in try_profiles(proposed):
        assert answer.built, answer
        assert not answer.warnings, answer


def runs(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Does ONNX Runtime run the model at these shapes?"""
    feeds: dict[str, Any] = {}
    for name, port in inputs_of(model).items():
        dtype, given = onnx.helper.tensor_dtype_to_np_dtype(port.kind), shapes.get(name, port.dims)
        feeds[name] = np.asarray(given, dtype) if port.holds_sizes else np.ones(given, dtype)
    try:
        return bool(lab.numerics.runner(model, [value.name for value in model.graph.output])(feeds))
    except ModelError:
        return False


@pytest.mark.parametrize("mistake", AT_NODES, ids=[one.name for one in AT_NODES])
def test_a_node_is_accused_exactly_where_onnx_runtime_fails(mistake: Mistake) -> None:
    model = mistake.model()
    trials = Trials(model)
    for profile in read_shapes(mistake.shapes):
        for sizes in trials.corners(profile):
            assert (trials.failure(sizes) is None) == runs(model, trials.shapes(sizes)), sizes


@pytest.mark.parametrize("batches", [(1, 1, 1), (1, 8, 32), (3, 64, 1024)])
def test_no_false_alarm_on_a_model_of_the_course(batches: tuple[int, ...]) -> None:
    course = lab.models
    for make in (course.efficientnet_lite0, course.digit_cnn, course.resnet50, course.mlp, course.transformer_encoder):
        model = make()
        for lengths in ((1, 7, 512), (511, 512, 512)):
            sizes = [{"N": batch, "S": length} for batch, length in zip(batches, lengths, strict=True)]
            shapes = {name: tuple(tuple(at.get(axis, axis) for axis in shape) for at in sizes)
                      for name, shape in model.inputs.items()}  # fmt: skip
            found = check(model.onnx(), shapes)
            assert not len(found), (model.name, str(found))
            assert found.proposal == shapes


def test_a_large_model_is_judged_without_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtlab.profiles.running.onnxruntime.InferenceSession.run", None)  # a run would take seconds
    path = lab.models.resnet50().onnx()
    assert check(path, {"x": ((1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 224, 224))}).ok
    huge = check(CONV(), sides((1, 8), (8, 1024), (64, 4096)))
    assert "elements" in huge[0].mistake


def test_of_a_large_model_the_nodes_that_shape_inference_cannot_judge_are_run() -> None:
    found = check(lab.models.transformer_encoder().onnx(), {"input_ids": ((1, 1), (1, 128), (8, 600))})
    assert [finding.silent for finding in found] == [True]
    assert "8×600×256" in found[0].mistake
    assert "512×256" in found[0].mistake
    assert found.proposal == {"input_ids": ((1, 1), (1, 128), (8, 512))}
    found = check(WIDE_TABLE(), {"x": ((1, 1, 1024), (8, 128, 1024), (8, 700, 1024))})
    assert "past the end of 600 rows" in found[0].mistake
    assert found.proposal == {"x": ((1, 1, 1024), (8, 128, 1024), (8, 600, 1024))}


def test_a_right_profile_has_no_findings() -> None:
    found = check(CONV(), GOOD)
    assert found.ok
    assert "Nothing is wrong" in found._repr_html_()


def test_the_model_is_not_changed_and_may_be_a_path_or_bytes(tmp_path: Path) -> None:
    model = TABLE()
    before = model.SerializeToString(deterministic=True)
    path = tmp_path / "table.onnx"
    path.write_bytes(before)
    shapes = {"x": ((1, 1, 8), (1, 8, 8), (1, 32, 8))}
    assert str(check(model, shapes)) == str(check(before, shapes)) == str(check(path, shapes))
    assert model.SerializeToString(deterministic=True) == before
    for wrong in (tmp_path / "no.onnx", b"not a model", tmp_path):
        with pytest.raises(ModelError):
            check(wrong, shapes)


def nonsense() -> Iterator[Any]:
    values: list[Any] = [None, "x", 3, 3.5, b"x", {}, [], (), [[]], [None], "1,3", (1, "3", 8, 8), True, float("nan")]
    yield from values
    for value in values:
        yield {"x": value}
        yield {"x": (value, value, value)}
        yield [GOOD, {"x": value}]
    yield from ({"x": (size, 3, 8, 8)} for size in (2**31, 10**30))
    for low, opt, high in itertools.product((0, 1, -5), repeat=3):
        yield {"x": ((low, 3, 8, 8), (opt, 3, 8, 8), (high, 3, 8, 8))}


def refusal(shapes: Any, model: onnx.ModelProto) -> str:
    """What build() says to these shapes before it asks TensorRT."""
    try:
        check_profiles(read_shapes(shapes), model)
    except ProfileError as error:
        return error.message
    return ""


def test_nonsense_for_shapes_becomes_findings_and_never_an_exception() -> None:
    model = CONV()
    for shapes in nonsense():
        found = check(model, shapes)
        refused = refusal(shapes, model)
        if refused:
            assert not found.ok
            assert refused in {finding.mistake for finding in found}
        else:
            assert all(finding.verdict == "look" or finding.node or "elements" in finding.mistake for finding in found)


def test_two_mistakes_in_one_profile_are_both_told() -> None:
    found = check(ADD(), {"p": ((4, 4), (2, 4), (8, 4)), "q": ((1, 5), (2, 5), (8, 5))})
    told = " ".join(finding.mistake for finding in found)
    assert "min is larger than opt" in told
    assert "Dimension 1 of input 'q' is fixed at 4" in told


def test_the_working_step_of_a_skip_connection_is_named() -> None:
    deep = SKIP()
    deep.graph.node[0].attribute[0].ints[:] = deep.graph.node[0].attribute[1].ints[:] = [8, 8]
    deep.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.float32([1, 1, 8, 8]), "scales"))
    found = check(deep, sides((1, 32), (1, 64), (1, 96)))
    assert {finding.verdict for finding in found} == {"look"}
    assert "multiples of 8" in found[0].mistake
    assert not len(check(deep, sides((1, 64), (1, 64), (1, 64))))


def test_what_comes_before_a_plugin_is_judged() -> None:
    model = ADD()
    model.graph.node[0].output[0] = "sum"
    model.graph.node.append(onnx.helper.make_node("EfficientNMS_TRT", ["sum"], ["y"]))
    assert check(model, rows("p", 1, 4, 8) | rows("q", 1, 4, 16))[0].node == "y"
    assert not len(check(model, rows("p", 1, 4, 8) | rows("q", 1, 4, 8)))


def test_what_is_inside_a_branch_accuses_nobody() -> None:
    for model in (branches(), loop()):
        assert not len(check(model))


def test_build_gives_a_shape_tensor_its_values() -> None:
    shapes = {**GOOD, "size": ((1, 3, 8, 8), (2, 3, 16, 16), (4, 3, 32, 32))}
    assert check(RESIZE(), shapes).ok
    engine = lab.build(RESIZE(), shapes=shapes, progress=False)
    assert engine.kernels
    count = t("c (int64 n, float[4] x) => (float[K] y) { r = Range(zero, n, one) f = Cast<to=1>(r)"
              " z = ReduceSum<keepdims=0>(x) y = Mul(f, z) }", zero=np.int64(0), one=np.int64(1))()  # fmt: skip
    assert lab.build(count, shapes={"n": ((1,), (5,), (16,))}, progress=False).kernels


def test_build_refuses_a_shape_tensor_without_right_values() -> None:
    for values, says in (((8,), "holds 2 sizes, the profile gives 1"), ((1, 9), "min is larger than opt")):
        with pytest.raises(ProfileError, match=says):
            lab.build(EXPAND(), shapes={"size": (values, (2, 8)[: len(values)], (4, 8)[: len(values)])}, progress=False)


def test_shape_tensors_are_told_from_ordinary_integers_as_tensorrt_does() -> None:
    ids = t("g (float[9,4] table, int64[3] ids) => (float[3,4] y) { y = Gather(table, ids) }")()
    assert not inputs_of(ids)["ids"].holds_sizes
    for answer in try_profiles([(ids, None), (EXPAND(), {"size": ((1, 8), (2, 8), (4, 8))})]):
        assert answer.built
    assert inputs_of(EXPAND())["size"].holds_sizes
    empty = t("r (float[3,2] x, int64[0] axes) => (float[1,1] y) { y = ReduceSum(x, axes) }")()
    assert check(empty).ok
    assert guess(empty) == {}


@pytest.mark.parametrize("stacks", [False, True])
def test_the_count_of_a_loop_is_a_size_only_where_the_loop_stacks(stacks: bool) -> None:
    rows, out, more = ("int64 n", "last, y", ", float[4] o") if stacks else ("int64 n", "y", "")
    loop = t(f"""l ({rows}, float[4] x) => (float[K,4] y) {{ {out} = Loop(n, go, x) <body = b
        (int64 i, bool c, float[4] v) => (bool c2, float[4] v2{more}) {{ v2 = Add(v, x) c2 = Identity(c)
        {"o = Identity(v2)" if stacks else ""} }}> }}""".replace("[K,4]", "[K,4]" if stacks else "[4]"),
             go=np.array(True))()  # fmt: skip
    assert inputs_of(loop)["n"].holds_sizes == stacks
    assert lab.build(loop, shapes=guess(loop) or None, progress=False).layers
    assert check(loop).ok != stacks


def test_a_loop_that_never_ends_on_zeros_is_not_judged() -> None:
    model = unchecked(
        """endless (float[1,8] x) => (float[1,8] y) <bool go = {1}, float limit = {100}> {
            [loop] y = Loop<body = once (int64 turn, bool before, float[1,8] a) => (bool again, float[1,8] b) {
                b = Add(a, a)  most = ReduceMax<keepdims=0>(b)  again = Less(most, limit)
            }>(, go, x)
        }"""
    )
    assert not lab.diagnose(model).causes
