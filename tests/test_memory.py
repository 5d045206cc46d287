"""What takes a GPU's memory: liveness, parts, growth and fit, against TensorRT's own figures."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import chapter07_curves
import onnx
import pytest
import tiny_models as tiny
from chapter03 import try_settings

import trtlab as lab
from trtlab import AssetError, BuildError, ModelError, ProfileError, TrtlabError, memory
from trtlab.buildlog import read_build_log
from trtlab.engine import Engine, Layer, Port, Tensor
from trtlab.logs import diagnose_text
from trtlab.memory import fitting
from trtlab.toys import PATTERNS, detector, toy

MiB = 2**20
GPU = "RTX 4090"
SCRATCH = 8_192_000  # what TensorRT-RTX 1.7 keeps aside per stream with a convolution or a matrix product


def build(model: Any, **options: Any) -> Engine:
    return lab.build(model, gpu=GPU, progress=False, **options)


def softmaxes(length: int) -> onnx.ModelProto:
    names = ["x", *[f"s{number}" for number in range(1, length)], "y"]
    body = " ".join(f"{new} = Softmax<axis={1 + i % 2}>({names[i]})" for i, new in enumerate(names[1:]))
    return toy(f"softmaxes (float[64,512,512] x) => (float[64,512,512] y) {{ {body} }}")


def convolutions(length: int) -> onnx.ModelProto:
    names = ["x", *[f"c{number}" for number in range(1, length)], "y"]
    body = " ".join(f"{new} = Conv<pads=[1,1,1,1]>({old}, w)" for old, new in itertools.pairwise(names))
    return toy(f"chain (float[8,64,56,56] x) => (float[8,64,56,56] y) {{ {body} }}", w=(64, 64, 3, 3))


def kernel(name: str, reads: str, writes: str, stream: int = 0, kind: str = "kgen", event: int | None = None) -> Layer:
    """A layer whose tensors are 1 MiB each; "a:3" has 3."""
    return Layer(name, kind, (), mebibytes(reads), mebibytes(writes), stream=stream, event=event)


def mebibytes(names: str) -> tuple[Tensor, ...]:
    parts = [name.partition(":") for name in names.split()]
    return tuple(Tensor(name, (int(size or 1), MiB // 4), "FP32") for name, _, size in parts)


PORTS = (Port("x", "Input", "FP32", (1, MiB // 4)), Port("y", "Output", "FP32", (1, MiB // 4)))


# --- liveness


@pytest.mark.parametrize("length", [2, 3, 4])
def test_without_scratch_memory_the_most_alive_is_exactly_what_tensorrt_reserves(length: int) -> None:
    life = memory.liveness(build(softmaxes(length)))
    assert life.reserved_bytes == life.peak_bytes
    assert life.peak_bytes > 2 * 64 * 512 * 512 * 4


def test_streams_that_may_run_side_by_side_are_alive_at_the_same_time() -> None:
    life = memory.liveness(build(PATTERNS["Sibling convolutions"].model()))
    assert len({kernel.stream for kernel in life.kernels}) == 2
    assert life.reserved_bytes == life.peak_bytes + 2 * SCRATCH
    assert life.peak_bytes == life.sum_bytes


def test_the_attention_of_bert_is_read_as_one_tensor_in_many_shapes() -> None:
    life = memory.liveness(build(PATTERNS["Attention"].model()))
    merged = [tensor for tensor in life.tensors if tensor.nbytes == 512 * 768 * 4]
    assert len(merged) == 1  # Q, K and V: written as 512 × 768, read as three times 512 × 256
    assert merged[0].last - merged[0].born > 2


def test_a_tensor_lives_from_its_first_writer_to_its_last_reader() -> None:
    layers = (kernel("1", "x", "a:2"), kernel("2", "a:2", "b"), kernel("3", "b", "c"), kernel("4", "c a:2", "y"))
    life = memory.liveness(Engine(layers, PORTS, activation_bytes=5 * MiB))
    assert [(tensor.name, tensor.born, tensor.last) for tensor in life.tensors] == [
        ("a", 0, 3), ("b", 1, 2), ("c", 2, 3)
    ]  # fmt: skip
    assert [size // MiB for size in life.alive] == [2, 3, 4, 3]
    assert [tensor.name for tensor in life.present[2]] == ["a", "b", "c"]
    assert (life.sum_bytes, life.peak_bytes, life.peak) == (4 * MiB, 4 * MiB, 2)


def test_a_result_that_nobody_reads_is_alive_while_it_is_written() -> None:
    life = memory.liveness(Engine((kernel("1", "x", "a"), kernel("2", "x", "y")), PORTS))
    assert [size // MiB for size in life.alive] == [1, 0]


def side_by_side(*, waits: bool) -> Engine:
    """a on stream 0; then b, c on 0 and d, e on 1; with `waits` stream 1 starts when b is done."""
    signal = kernel("s", "", "", 0, "signal", 7)
    wait = kernel("w", "", "", 1, "wait", 7)
    early, late = ([signal], []) if not waits else ([], [signal])
    return Engine(
        (
            kernel("1", "x", "a"), *early, kernel("2", "a", "b:8"), *late, kernel("3", "b:8", "c"),
            wait, kernel("4", "a", "d:4", 1), kernel("5", "d:4", "e", 1),
            kernel("t", "", "", 1, "signal", 8), kernel("v", "", "", 0, "wait", 8), kernel("6", "c e", "y"),
        ),
        PORTS,
    )  # fmt: skip


def test_an_event_keeps_tensors_of_two_streams_apart() -> None:
    free, ordered = (memory.liveness(side_by_side(waits=waits)) for waits in (False, True))
    assert free.peak_bytes == (8 + 1 + 4 + 1) * MiB  # b, its reader's c, d and e or a
    assert ordered.alive[1] == 9 * MiB  # b is written: a is alive, d cannot be yet
    assert free.alive[1] > ordered.alive[1]


def test_many_independent_streams_are_looked_at_in_their_order() -> None:
    layers = tuple(
        kernel(f"{stream} {step}", "x" if step == 0 else f"t{stream}_{step - 1}", f"t{stream}_{step}", stream)
        for stream in range(9)
        for step in range(6)
    )
    life = memory.liveness(Engine(layers, PORTS))
    assert life.peak_bytes == 2 * MiB


def test_an_engine_for_a_range_asks_for_one_shape() -> None:
    engine = build(tiny.conv("N"), shapes={"x": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))})
    with pytest.raises(ProfileError, match=r"known only at run time.*'x': \(4, 3, 8, 8\)"):
        memory.liveness(engine)


def test_an_engine_without_layers_says_so() -> None:
    with pytest.raises(AssetError, match="DETAILED"):
        memory.liveness(Engine(()))


def test_one_kernel_has_nothing_alive_in_between() -> None:
    life = memory.liveness(build(PATTERNS["Pointwise chain"].model()))
    assert (life.tensors, life.peak_bytes, life.sum_bytes, life.peak) == ((), 0, 0, 0)
    assert "0.0 MiB" in repr(life)


def test_the_summary_is_readable() -> None:
    life = memory.liveness(build(convolutions(2)))
    assert "most alive at once: 12.2 MiB" in repr(life)
    assert "not reported" in repr(replace(life, reserved_bytes=None))


# --- the log


def test_signals_and_waits_are_layers_and_carry_their_event() -> None:
    engine = build(PATTERNS["Sibling convolutions"].model())
    pairs = [(layer.type, layer.event) for layer in engine.layers if layer.type in ("signal", "wait")]
    assert {kind for kind, _ in pairs} == {"signal", "wait"}
    assert all(event is not None for _, event in pairs)
    assert len(engine.kernels) == 5


def test_memory_allocated_at_run_time_is_no_kernel() -> None:
    text = "".join(
        f"Name: n{index}, LayerType: {kind}, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, "
        "Metadata: \n"
        for index, kind in enumerate(("allocate", "kgen", "deallocate"))
    )
    engine = read_build_log([f"Layers:\n{text}\nI/O Tensors:\n"])
    assert [layer.type for layer in engine.kernels] == ["kgen"]


# --- the parts


def test_the_parts_of_an_engine_add_up_to_what_tensorrt_reports() -> None:
    engine = build(lab.models.digit_cnn().onnx(), shapes={"x": (4, 1, 28, 28)})
    table = memory.breakdown(engine)
    assert table["bytes"]["weights"] == engine.weight_bytes
    assert table["bytes"]["activations"] + table["bytes"]["scratch and gaps"] == engine.activation_bytes
    assert (table["bytes"]["inputs"], table["bytes"]["outputs"]) == (4 * 28 * 28 * 4, 4 * 10 * 4)
    assert table["bytes"]["CUDA context, kernels"] is None
    assert table["bytes"]["host"] > 0


def test_the_parts_of_an_engine_for_a_range_are_those_of_its_largest_profile() -> None:
    engine = build(tiny.conv("N"), shapes=[{"x": (2, 3, 8, 8)}, {"x": ((1, 3, 8, 8), (4, 3, 8, 8), (9, 3, 8, 8))}])
    table = memory.breakdown(engine)
    assert table["bytes"]["inputs"] == 9 * 3 * 8 * 8 * 4
    assert table["bytes"]["activations and scratch"] == engine.activation_bytes
    assert table["bytes"]["outputs"] is None


def test_a_plan_file_has_no_parts_to_tell() -> None:
    with pytest.raises(AssetError, match="takes an Engine"):
        memory.breakdown("my.plan")  # type: ignore[arg-type]


# --- the curve

BIG = toy("big (float16[N,1024] x) => (float16[N,1024] y) { a = Softmax<axis=0>(x) y = Softmax<axis=1>(a) }")


def test_a_curve_is_exact_where_it_was_measured_and_close_between() -> None:
    model = detector(side=128)
    curve = chapter07_curves.curve(model, GPU, None, [1, 2, 4, 8])
    for batch in (1, 4, 8):
        assert curve.at(batch) == build(model, shapes={"x": (batch, 3, 128, 128)}).activation_bytes
    for batch in (3, 6):
        figure = build(model, shapes={"x": (batch, 3, 128, 128)}).activation_bytes
        assert figure
        assert abs(curve.at(batch) / figure - 1) < 0.1
    assert "x N×3×128×128" in repr(curve)


def test_a_letter_may_stand_for_height_and_width() -> None:
    curve = chapter07_curves.curve(detector(), GPU, {"x": (1, 3, "S", "S")}, [64, 128])
    assert curve.symbol == "S"
    assert curve.at(128) == build(detector(), shapes={"x": (1, 3, 128, 128)}).activation_bytes


@pytest.mark.parametrize("size", [0, 0.9, 9, -1, 2**40])
def test_a_curve_never_answers_beyond_its_ends(size: float) -> None:
    curve = chapter07_curves.Curve("N", (1, 8), (100, 800), "x N")
    with pytest.raises(ProfileError, match="outside of what was measured"):
        curve.at(size)


@pytest.mark.parametrize(
    ("shapes", "sizes", "says"),
    [
        ({"x": (1, 1024)}, [1, 2], "No size is open in x 1×1024"),
        ({"x": ("N", "M")}, [1, 2], r"2 sizes are open \(N, M\) in x N×M"),
        ({"x": ("N", 1024.0)}, [1, 2], "not a whole number"),
        ({"z": ("N", 1024)}, [1, 2], "no input 'z'"),
        ("x", [1, 2], "not a dictionary"),
        (None, [4], "two sizes"),
        (None, "12", "not a whole number"),
        (None, [1.5, 2], "not a whole number"),
        (None, [0, 2], "empty"),
        (None, [1, 2**31], "cannot be"),
    ],
)
def test_a_curve_says_what_is_wrong_with_its_sizes(shapes: Any, sizes: Any, says: str) -> None:
    with pytest.raises(ProfileError, match=says):
        chapter07_curves.curve(BIG, GPU, shapes, sizes)


def test_a_model_without_a_dynamic_axis_has_no_curve_and_no_largest_batch() -> None:
    for ask in (lambda: chapter07_curves.curve(tiny.conv(), GPU, None, [1, 2]), lambda: memory.fits(tiny.conv(), GPU)):
        with pytest.raises(ProfileError, match=r"No size is open in x 1×3×8×8.*chapter 01"):
            ask()


def test_a_curve_through_a_size_that_does_not_build_is_an_error() -> None:
    with pytest.raises(BuildError, match="FP32 GEMM"):
        chapter07_curves.curve(lab.models.mlp().onnx(), "T4", None, [1, 2])


resnet50, lite0 = lab.models.resnet50, lab.models.efficientnet_lite0
SIDES = {"x": (1, 3, "S", "S")}
GRIDS: dict[str, tuple[Any, Mapping[str, Any], Sequence[int], Sequence[int]]] = {
    "ResNet-50, batch": (lambda: resnet50().onnx(), {"x": ("N", 3, 224, 224)}, (1, 2, 4, 8, 16), (3, 6, 11)),
    "ResNet-50, side": (lambda: opened(resnet50().onnx()), SIDES, (128, 256, 512), (192, 384)),
    "Lite0, batch": (lambda: lite0().onnx(), {"x": ("N", 3, 224, 224)}, (4, 8, 16), (6, 10, 12)),
    "Lite0, side": (lambda: opened(lite0().onnx()), SIDES, (128, 256, 512, 1024), (192, 384, 704, 768)),
    "BERT-base, tokens": (lambda: bert(), {"input_ids": (8, "S")}, (64, 128, 256, 512), (96, 192, 384)),
    "detector, side": (detector, SIDES, (128, 256, 512, 1024), (192, 384, 640, 768)),
    "detector, batch": (detector, {"x": ("N", 3, 640, 640)}, (1, 2, 4, 8), (3, 5, 6)),
}


def opened(path: Path) -> onnx.ModelProto:
    """The model with images of any size."""
    model = onnx.load(path)
    for axis, letter in ((2, "H"), (3, "W")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = letter
    del model.graph.value_info[:]
    return model


def bert() -> Path:
    return lab.models.transformer_encoder(layers=12, width=768, heads=12, vocabulary=30522).onnx()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name == "detector, batch" else pytest.param(name, marks=pytest.mark.deep) for name in GRIDS]
)
def test_between_measured_sizes_the_curve_is_within_a_tenth_of_tensorrts_own_figure(name: str) -> None:
    model, shapes, measured, between = GRIDS[name]
    network = model()
    curve = chapter07_curves.curve(network, GPU, shapes, measured)
    asked = chapter07_curves.curve(network, GPU, shapes, between)
    misses = {size: curve.at(size) / asked.at(size) - 1 for size in between}
    print(name, {size: f"{100 * miss:+.1f}%" for size, miss in misses.items()})
    assert max(map(abs, misses.values())) < 0.1


# --- does it fit?


def total(engine: Engine) -> int:
    parts = memory.breakdown(engine)["bytes"]
    return int(parts.drop(["host", "CUDA context, kernels"]).sum())


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    model = lab.models.digit_cnn().onnx()
    fit = memory.fits(model, GPU, limit_gib=0.25, reserve_gib=0.1)
    room = int(0.25 * 2**30) - int(0.1 * 2**30)
    assert total(build(model, shapes={"x": (fit.size, 1, 28, 28)})) <= room
    assert total(build(model, shapes={"x": (fit.size + 1, 1, 28, 28)})) > room
    assert fit.capacity_bytes == 2**28
    assert f"N = {fit.size} on RTX 4090" in str(fit)
    assert "assumed" in str(fit)
    assert "Not counted" in str(fit)
    assert fit.table()["fits"].sum() >= 3
    assert "<table" in fit._repr_html_()


def test_the_answer_is_for_the_shapes_asked_for_also_as_a_range() -> None:
    shapes = {"x": ((1, 1, 28, 28), ("N", 1, 28, 28), ("N", 1, 28, 28))}
    model = lab.models.digit_cnn().onnx()
    fit = memory.fits(model, GPU, shapes, limit_gib=0.2, reserve_gib=0.1)
    engine = build(model, shapes={"x": ((1, 1, 28, 28), (fit.size, 1, 28, 28), (fit.size, 1, 28, 28))})
    found = next(one for one in fit.tries if one.size == fit.size)
    assert found.activation_bytes == engine.activation_bytes
    assert found.io_bytes == fit.size * (28 * 28 + 10) * 4  # also where the engine leaves its outputs open


def test_nothing_fits_where_one_is_too_much() -> None:
    fit = memory.fits(lab.models.resnet50().onnx(), GPU, limit_gib=0.2, reserve_gib=0.15)
    assert fit.size == 0
    assert "not even N = 1" in fit.reason


def test_a_tensor_of_two_to_the_31_elements_is_the_end_also_where_memory_is_left() -> None:
    fit = memory.fits(BIG, "RTX 4090")
    assert fit.size == 2**21 - 1  # × 1024 elements
    assert "memory is not the limit" in fit.reason
    assert max(one.size for one in fit.tries) == fit.size


@pytest.fixture
def with_figures(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What fits() finds in 1 GiB where the engine of each size reserves figures(size) MiB."""

    def use(figures: Any, allocates: Sequence[int] = ()) -> fitting.Fit:
        def built(size: int) -> Any:
            layers = (kernel("a", "", "", 0, "allocate" if size in allocates else "kgen"),)
            figure = figures(size)
            return figure if isinstance(figure, TrtlabError) else Engine(layers, (), figure * MiB, 0)

        monkeypatch.setattr(fitting, "build_each", lambda model, shapes, gpu: [built(one["x"][0]) for one in shapes])
        model = toy("f (float[N] x) => (float[N] y) { y = Relu(x) }")
        return memory.fits(model, GPU, limit_gib=1.0005, reserve_gib=0)  # half a MiB for x and y

    return use


@pytest.mark.parametrize("per_item", [1, 3, 7, 100, 1000])
def test_the_search_ends_at_the_border_for_any_slope(with_figures: Any, per_item: int) -> None:
    fit = with_figures(lambda size: 20 + per_item * size)
    assert fit.size == (1024 - 20) // per_item
    assert len(fit.tries) <= 12


def test_steps_and_curves_are_searched_too(with_figures: Any) -> None:
    assert with_figures(lambda size: 100 * (1 + size // 8)).size == 79
    assert with_figures(lambda size: size * size).size == 32
    assert with_figures(lambda size: 1000 if size < 50 else 2000).size == 49


def test_a_dip_beyond_the_border_is_found(with_figures: Any) -> None:
    fit = with_figures(lambda size: 10 * size if size < 110 or size > 140 else 5 * size)
    assert fit.size == 140


def test_a_figure_that_leaves_tensors_out_is_not_believed(with_figures: Any) -> None:
    fit = with_figures(lambda size: 10 * size if size < 90 else 10, allocates=range(90, 10_000))
    assert fit.size == 89
    assert "allocates at run time" in fit.reason


def test_a_size_that_does_not_build_does_not_fit_but_the_first_must_build(with_figures: Any) -> None:
    refused = BuildError("too large", stage="memory")
    fit = with_figures(lambda size: 10 if size < 33 else refused)
    assert fit.size == 32
    assert "no engine: too large" in fit.reason
    with pytest.raises(BuildError, match="too large"):
        with_figures(lambda size: refused)


def test_a_build_that_fails_for_another_reason_is_not_taken_for_one_that_does_not_fit(with_figures: Any) -> None:
    known = diagnose_text("Error Code 2: OutOfMemory (Requested size was 5 bytes.)")
    fit = with_figures(lambda size: 10 if size < 33 else BuildError("no room", diagnosis=known))
    assert fit.size == 32
    for other in (BuildError("TensorRT crashed", stage="crash"), ModelError("no such operator")):
        with pytest.raises(type(other), match=other.message):
            with_figures(lambda size, other=other: 10 if size < 33 else other)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"limit_gib": -1}, "limit_gib=-1 and reserve_gib=0.75"),
        ({"limit_gib": float("nan")}, "limit_gib=nan"),
        ({"limit_gib": 25}, "RTX 4090 has 24 GB"),
        ({"reserve_gib": -0.5}, "reserve_gib=-0.5"),
        ({"reserve_gib": 24}, "there is no room"),
    ],
)
def test_limits_that_cannot_be_are_refused_before_anything_is_built(options: dict[str, Any], says: str) -> None:
    with pytest.raises(TrtlabError, match=says) as caught:
        memory.fits(BIG, GPU, **options)
    assert type(caught.value) is TrtlabError
    assert "reserve" in caught.value.diagnosis.fix


# --- the workspace limit (what chapter 07 says of it)


@pytest.mark.slow
def test_a_build_passes_when_workspace_limit_and_weights_reach_the_activation_memory() -> None:
    for model in (convolutions(1), PATTERNS["Sibling convolutions"].model(), detector(1, 640)):
        engine = build(model)
        border = (engine.activation_bytes or 0) - (engine.weight_bytes or 0)
        limits = [
            f"config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, {border + by})" for by in (-(2**17), 2**17)
        ]
        assert [bool(trial.engine) for trial in try_settings(model, limits, gpu=GPU)] == [False, True]
