"""diagnose(): a message, an exception or a model in; cause, evidence and fix out."""

from __future__ import annotations

import io
import json
import re
import subprocess
import textwrap
import tomllib
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxslim
import pytest
import tiny_models as tiny
from hypothesis import given
from hypothesis import strategies as st

import trtlab as lab
from trtlab.errors import Cause, Diagnosis
from trtlab.logs import diagnose_lines, diagnose_text, lines_of
from trtlab.messages import Rule, plain, rules, table, way_out
from trtlab.toys import toy, unchecked

NOISE = (
    "[ERROR] [defaultAllocator.cpp::catchCudaError::30] Error Code 1: Cuda Runtime (In catchCudaError: cudaError 35)"
)


CASES = tomllib.loads((Path(__file__).parent / "messages.toml").read_text(encoding="utf-8"))
HEALTHY = "[01/02/2026-10:00:00] [I] [TRT] Layer Conv_1 took 0.1 ms.\n"


def cases(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", CASES[kind], ids=lambda case: case["text"].strip()[:60])


rules_by_name = pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.says.pattern[:50])


@cases("known")
def test_known_messages(case: dict[str, str]) -> None:
    found = lab.diagnose(case["text"])
    assert case["cause"] in found.cause
    assert case["fix"] in found.fix
    assert case.get("then", "") in "".join(cause.text for cause in found.causes[1:2])
    assert found.evidence
    assert len(found.causes) <= 3


NO_CAUSE = {
    "healthy": "Nothing failed in this text.",
    "unknown": "trtlab does not know this message.",
    "consequence": "The reason is not in this text: ",
}


@pytest.mark.parametrize("kind", NO_CAUSE)
def test_text_without_a_cause(kind: str) -> None:
    for case in CASES[kind]:
        found = lab.diagnose(case["text"])
        assert NO_CAUSE[kind] in found.cause, case["text"]
        assert case.get("cause", "") in found.cause
        assert case.get("evidence", found.evidence) == found.evidence
        assert (found.causes, found.fix) == ((), "")
        assert found.evidence in str(found)


def judged(case: dict[str, Any]) -> str:
    """Is the first thing that lab.diagnose() says of a held-out text right, wrong, or that it is unknown?"""
    found = lab.diagnose(case["text"])
    said = f"{found.cause} {found.fix}" if found.causes or "Nothing failed" in found.cause else "unknown"
    right = any(word in said.lower() for word in case["must_mention"] or [case["want"]])
    return "right" if right else "unknown" if said == "unknown" else "wrong"


def test_held_out_texts_that_were_right_stay_right() -> None:
    texts = json.loads((Path(__file__).parent / "held_out_messages.json").read_text(encoding="utf-8"))
    found = {case["id"]: judged(case) for case in texts}
    assert Counter(found.values()) == {"right": 159}, found  # rules were mended after each batch was judged


@rules_by_name
def test_every_rule_is_proved_and_proves_itself_first(rule: Rule) -> None:
    first = next(one for one in rules() if one.says.search(rule.proof))
    assert first is rule, "another rule takes its text"
    found = lab.diagnose(rule.proof)
    assert bool(found.causes) == bool(found.fix) == (rule.kind != "consequences")
    assert found.reference == rule.see
    assert not re.search(r"\{[a-z]+\}", found.cause + found.fix), "a name is not filled in"


@rules_by_name
def test_rule_is_no_catch_all(rule: Rule) -> None:
    note = re.sub(r"\[(?:E|F|ERROR)\]", "", rule.proof)
    assert not lab.diagnose(f"[01/02/2026-10:00:00] [V] [TRT] Note: {note}").causes, "a message of no weight"
    assert not lab.diagnose(f"&&&& RUNNING TensorRT.trtexec # trtexec --loadEngine='{rule.proof}'").causes, "a command"
    words = re.findall(r"[A-Za-z]{4,}", rule.proof)
    assert not lab.diagnose("A page about " + ", ".join(sorted(set(words)))).causes, "the same words in another order"


@rules_by_name
def test_rule_is_found_in_a_long_log(rule: Rule) -> None:
    if rule.kind != "warnings":
        assert lab.diagnose(f"{HEALTHY * 300}{rule.proof}\n{HEALTHY * 300}") == lab.diagnose(rule.proof)


PROFILE = "Network has dynamic or shape inputs, but no optimization profile has been defined."
ERROR = f"[01/02/2026-10:00:02] [E] Error[4]: [network.cpp::validate::3062] Error Code 4: Internal Error ({PROFILE})"


@pytest.mark.parametrize(
    "start", ["[01/02/2026-10:00:00] [I] Start parsing. ", "[V] a: b ", "[W] [TRT] Default stream."]
)
def test_an_error_later_in_a_line_counts(start: str) -> None:
    assert "no optimization profile" in lab.diagnose(f"{start}{ERROR} [01/02/2026-10:00:02] [E] Failed").cause
    assert "no optimization profile" in lab.diagnose("[I] fine\n" * 300 + f"{start}{ERROR}").cause


def test_information_that_tells_a_cause() -> None:
    assert "no optimization profile" in lab.diagnose(f"INFO:     worker: {PROFILE}").cause
    assert lab.diagnose("[I] Loading m.plan IRuntime::x: Error Code 1: News (Unheard of)").evidence == "Unheard of"
    assert lab.diagnose("[I] BackendStates()\n| x | 1 | UNAVAILABLE: Internal: news |").cause == NO_CAUSE["unknown"]


@pytest.mark.parametrize("lines", [textwrap.wrap(ERROR, 72), [ERROR[at : at + 80] for at in range(0, len(ERROR), 80)]])
@pytest.mark.parametrize("healthy", [0, 300])
def test_a_wrapped_message_is_joined(lines: list[str], healthy: int) -> None:
    found = lab.diagnose(HEALTHY * healthy + "\n".join(lines))
    assert "no optimization profile says" in found.cause
    assert found.evidence == PROFILE.rstrip(".")


def test_what_was_said_of_a_skipped_tactic_is_evidence() -> None:
    text = "[W] Skipping tactic 0x0 due to exception 64 meets 22\n"
    text += "[E] Could not find any implementation for node PWN(a, b)."
    found = lab.diagnose(text)
    assert "network: PWN(a, b)." in found.cause
    assert found.evidence.endswith("\nSkipping tactic 0x0 due to exception 64 meets 22")


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_log_in_any_coding(coding: str, end: str, tmp_path: Path) -> None:
    text = end.join(["\x1b[0;31m[01/02/2026-10:00:02] [E] Engine set up failed\x1b[0m", *["[I] fine"] * 300])
    text = f"[I] a{end}\x1b[1;31m[E] (Dynamic inputs, but no optimization profile has been defined.){end}{text}"
    (tmp_path / "a.log").write_bytes((("\ufeff" if coding == "utf-16-be" else "") + text).encode(coding))
    with (tmp_path / "a.log").open("rb") as file:
        found = diagnose_lines(lines_of(file))
    assert "no optimization profile says" in found.cause
    assert len(found.causes) == 1


def test_long_log_is_read_line_by_line(tmp_path: Path) -> None:
    path, error = tmp_path / "long.log", "[E] Error Code 1: Cuda Runtime (out of memory)\n"
    with path.open("w") as file:
        for number in range(40_000):
            file.write(f"[V] [TRT] Tactic 0x{number:x}: could not be timed, no error, not supported, must wait\n")
        file.write("x" * 1_000_000 + "\n" + error)
        for number in range(40_000):
            file.write(f"[E] consequence {number} of {number:x}: not found\n")
    tracemalloc.start()
    with path.open("rb") as file:
        found = diagnose_lines(lines_of(file))
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert "out of memory" in found.cause


@given(st.binary(max_size=400))
def test_any_bytes_have_a_diagnosis(data: bytes) -> None:
    assert isinstance(diagnose_lines(lines_of(io.BufferedReader(io.BytesIO(data)))), Diagnosis)  # type: ignore[arg-type]
    assert isinstance(lab.diagnose(data.decode("latin-1")), Diagnosis)


def test_the_noise_of_a_machine_without_a_gpu_is_not_the_cause() -> None:
    text = f"{NOISE}\nIBuilder::buildSerializedNetwork: Error Code 1: Myelin (The shapes must match)\n{NOISE}"
    assert lab.diagnose(text).evidence == "The shapes must match"
    assert lab.diagnose(f"Invalid Node - fc1\n{text}").evidence == "The shapes must match", "a line that announces it"
    assert "no NVIDIA GPU" in lab.diagnose(NOISE).cause, "but alone it is"


def test_message_without_code_and_source_position() -> None:
    raw = (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:1500: run_passes] Cannot compile for "
        "target(s) sm75. Choose another. In compileGraph at /_src/optimizer/myelin/codeGenerator.cpp:2012)"
    )
    assert plain(raw) == "Cannot compile for target(s) sm75. Choose another"
    assert plain("[ShapeInferenceError] (op_type:Add): 3 != 4") == "(op_type:Add): 3 != 4"
    cuda = "IRuntime::x: Error Code 1: Cuda Runtime (In S at /_src/c.cpp:25 (cudaError 35: too old))"
    assert plain(cuda) == "too old"


def test_diagnosis_of_a_failed_build_is_its_own() -> None:
    with pytest.raises(lab.BuildError) as caught:
        lab.build(tiny.mlp(), gpu="T4")
    found = lab.diagnose(caught.value)
    assert found is caught.value.diagnosis
    assert "SM75" in found.cause
    assert "SM75" in lab.diagnose(caught.value.log.partition("[ERROR] ")[2]).cause, "and so is that of its log"


def test_a_raw_export_is_told_to_fold_its_constants() -> None:
    model = toy(
        "t (float[2,3,4] x) => (float[2,1,4] y) { a = Reshape(one, all) y = ReduceMean(x, a) }", one=[1], all=[-1]
    )
    with pytest.raises(lab.BuildError, match="build-time constant") as caught:
        lab.build(model)
    assert "onnxslim" in lab.diagnose(caught.value).fix
    folded = onnxslim.slim(model)
    assert lab.build(folded).kernels, "and the fix helps"


def test_diagnosis_of_another_exception() -> None:
    assert "more memory" in lab.diagnose(RuntimeError("CUDA error: out of memory")).cause
    assert lab.diagnose(ValueError()).evidence == "ValueError:"
    first, second = RuntimeError("CUDA error: out of memory"), ModuleNotFoundError("No module named 'pycuda'")
    second.__cause__ = first
    assert [cause.text[:15] for cause in lab.diagnose(second).causes] == ["The GPU is out ", "The Python pack"]


def test_diagnosis_of_a_model(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    onnx.save(tiny.conv(), good)
    model = tiny.conv()
    model.graph.node[1].op_type = "Rellu"
    bad.write_bytes(model.SerializeToString())
    for form in (good, str(good), tiny.conv(), good.read_bytes()):
        assert lab.diagnose(form).cause == "The model is valid ONNX."
    for form in (bad, str(bad), model, bad.read_bytes()):
        assert "no operator 'Rellu'" in lab.diagnose(form).cause
    assert "no file" in lab.diagnose(tmp_path / "nowhere.onnx").cause


MODELS = ("digit_cnn", "efficientnet_lite0", "mlp", "resnet50", "transformer_encoder")
LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


@pytest.mark.parametrize("path", [*MODELS, *LIGHT], ids=str)
def test_no_alarm_for_a_model_that_is_fine(path: str | Path) -> None:
    found = lab.diagnose(getattr(lab.models, path)().onnx() if isinstance(path, str) else path)
    assert (found.cause, found.causes) == ("The model is valid ONNX.", ())


TYPES = {
    "Add": "t (float16[4] x) => (float16[4] y) { y = Add(x, w) }",
    "Where": "t (float[4] x) => (float[4] y) { y = Where(x, x, w) }",
    "Transpose": "t (float[1,3,4] x) => (float[1,4,3] y) { y = Transpose<perm=[0,2,1,3]>(x) }",
    "ArgMax": "t (float[1,3] x) => (float[1,1] y) { y = ArgMax<axis=1>(x) }",
}


@pytest.mark.parametrize("op", TYPES)
def test_types_that_do_not_fit_are_found_in_a_model(op: str) -> None:
    network = unchecked(TYPES[op])
    if "w" in TYPES[op]:
        network.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "w"))
    network.graph.node[0].name = "wrong"
    found = lab.diagnose(network)
    assert "at node 'wrong'" in found.cause
    assert found.fix


@pytest.mark.parametrize("grows", [True, False])
def test_a_state_that_grows_is_found_in_a_model(grows: bool) -> None:
    step = "so = Concat<axis=1>(st, o)" if grows else "so = Add(st, o)"
    text = f"""t (float[3,1] x) => (float[3,M] y) {{ y = Loop(n, t, x) <body = b (int64 i, bool c, float[3,K] st)
        => (bool co, float[3,L] so) {{ co = Identity(c) o = Constant<value = float[3,1] {{1, 1, 1}}>() {step} }}> }}"""
    found = lab.diagnose(unchecked(text, n=4, t=True))
    assert ("from [3,1] to [3,2]" in found.cause) == bool(found.causes) == grows


PAIR = "t (float[4,8] x) => (float[4,8] y) { q = QuantizeLinear<axis=0>(x, s) y = DequantizeLinear<axis=0>(q, s) }"


@pytest.mark.parametrize(("scale", "says"), [(0.0, "0 or negative"), ([0.1] * 8, "not as many"), ([0.1] * 4, "")])
def test_scales_that_tensorrt_refuses_are_found_in_a_model(scale: Any, says: str) -> None:
    found = lab.diagnose(unchecked(PAIR.replace("<axis=0>", "") if scale == 0 else PAIR, s=scale))
    assert says in found.cause
    assert bool(found.causes) == bool(says)
    if says:
        with pytest.raises(lab.BuildError) as caught:
            lab.build(unchecked(PAIR, s=scale))
        assert lab.diagnose(caught.value).cause == found.cause


def test_what_only_onnx_runtime_refuses_is_worded_so() -> None:
    text = "t (float[1,3] x) => (float[1,1] y) { y = GatherElements<axis=1>(x, i) }"
    found = lab.diagnose(toy(text, i=[[7]]))
    assert "not asked" in found.evidence
    assert "onnxruntime::" not in found.cause
    assert "'y'" in found.fix


def test_everything_that_an_exception_carries_is_read() -> None:
    noted = RuntimeError("build failed")
    noted.add_note(ERROR)
    failed = subprocess.CalledProcessError(1, ["trtexec"], stderr=ERROR.encode())
    for error in (noted, failed, ExceptionGroup("many", [ValueError("x"), RuntimeError(ERROR)])):
        assert "no optimization profile says" in lab.diagnose(error).cause
    assert "no optimization profile says" in lab.diagnose(ERROR.encode()).cause


def test_what_stops_the_build_stands_before_what_is_not_as_it_was_meant() -> None:
    model = toy("t (float[1,3,8,8] x, double[2] u) => (float[1,3,8,8] y) { a, m = Dropout(x, r, t) y = Conv(a, w) }",
                r=0.5, t=True, w=(3, 5, 1, 1))  # fmt: skip
    causes = lab.diagnose(model).causes
    assert [cause.text[:9] for cause in causes] == ["Some node", "At every ", "No output", "The model"]
    assert all(cause.fix and cause.evidence for cause in causes)


def test_diagnosis_of_a_log_by_its_path(tmp_path: Path) -> None:
    log, engine = tmp_path / "build out.err", tmp_path / "a.engine"
    log.write_text("[E] Plugin not found", encoding="utf-16")
    engine.write_bytes(b"ftrt\0\0\1\0")
    for form in (log, str(log)):
        assert lab.diagnose(form).cause.startswith("TensorRT has no importer")
    assert "is a TensorRT engine" in lab.diagnose(engine).cause
    assert lab.diagnose("Plugin not found while reading my net.onnx").cause.startswith("TensorRT has no importer")
    assert "not int" in lab.diagnose(7).cause  # type: ignore[arg-type]


def test_diagnosis_in_words_and_html() -> None:
    found = Diagnosis("It is <b>so</b>.", "a & b", "mend it.", "https://example.org")
    assert str(found).splitlines() == [
        "It is <b>so</b>.",
        "  evidence: a & b",
        "  fix: mend it.",
        "  see: https://example.org",
    ]
    assert "<b>so" not in found._repr_html_()
    assert "a &amp; b" in found._repr_html_()
    assert diagnose_text("x").reference == ""
    two = Diagnosis.of([Cause("First.", "a", "mend it."), Cause("Second.", fix="and it.")])
    assert (two.cause, two.fix, len(two.causes)) == ("First.", "mend it.", 2)
    assert str(two).splitlines() == ["First.", "  evidence: a", "  fix: mend it.", "then: Second.", "  fix: and it."]
    assert two._repr_html_().count("<table>") == 2
    assert two.translated(str.upper).causes[1] == Cause("SECOND.", "", "AND IT.")


@pytest.mark.parametrize("path", ["nowhere.onx", "a/nowhere.log", "nowhere.plan", "NO.ONNX", "no.pth", "no.onnx.data"])
def test_a_path_that_is_not_there_is_no_message(path: str) -> None:
    assert lab.diagnose(path).cause == f"There is no file '{path}'."
    assert lab.diagnose(f"it says {path}").causes == ()


# ----------------------------------------------------------------------- what the parser refuses, and the way out of it

IMPORTERS = {kind: names.split() for kind, names in table()["importers"].items()}
FLOAT = onnx.TensorProto.FLOAT


def test_the_operators_without_importer_are_those_of_the_parser() -> None:
    logger = lab.trt.Logger(lab.trt.Logger.INTERNAL_ERROR)
    builder = lab.trt.Builder(logger)
    network = builder.create_network(0)  # kept: the parser does not keep it alive
    parser = lab.trt.OnnxParser(network, logger)
    known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    assert {op for op in known if not parser.supports_operator(op)} == set(IMPORTERS["none"])
    assert all(map(parser.supports_operator, IMPORTERS["plugin"])), "it says so, and then looks for a plugin"


@pytest.mark.parametrize("op", [op for ops in IMPORTERS.values() for op in ops])
def test_an_operator_without_importer_is_named_with_its_node_and_a_way_out_of_its_own(op: str) -> None:
    least = onnx.defs.get_schema(op).min_input
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node(op, ["x"] * least, ["y"], "n4")],
            "g",
            [onnx.helper.make_tensor_value_info("x", FLOAT, [4])],
            [onnx.helper.make_tensor_value_info("y", FLOAT, None)],
        )
    )
    check = lab.checklist(model)["operators"]
    assert (check.verdict, check.found, check.advice) == ("fix", f"no importer for n4 ({op})", way_out(op))
    assert way_out(op) not in (way_out("Strange"), way_out("aten::x"))


SCALE = np.float32(0.1)
REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {  # a model, what diagnose() names, a word of the way out
    "a list": ("(float[4,8] x) => (float[8,8] y) { s = SequenceConstruct(x, x) y = ConcatFromSequence<axis=0>(s) }",
               {}, "s (SequenceConstruct), y (ConcatFromSequence)", "torch.stack"),
    "a choice of rows": ("(float[4,8] x, bool[4] c) => (float[N,8] y) { y = Compress<axis=0>(x, c) }",
                         {}, "y (Compress)", "Where"),
    "a determinant": ("(float[3,3] x) => (float y) { y = Det(x) }", {}, "y (Det)", "small matrices"),
    "boxes": ("(float[1,2,8,8] x, float[3,4] b, int64[3] i) => (float[3,2,2,2] y)"
              " { y = RoiAlign<output_height=2,output_width=2>(x, b, i) }", {}, "y (RoiAlign)", "GridSample"),
    "integers": ("(int8[4,8] x, int8[8,2] w) => (int32[4,2] y) { y = MatMulInteger(x, w) }",
                 {}, "y (MatMulInteger)", "QuantFormat.QDQ"),
    "ranges at run time": ("(float[4,8] x) => (uint8[4,8] y, float r, uint8 o) { y, r, o = DynamicQuantizeLinear(x) }",
                           {}, "y (DynamicQuantizeLinear)", "QuantFormat.QDQ"),
    "patches": ("(float[1,12,45] x) => (float[1,3,A,B] y) { y = Col2Im(x, i, b) }",
                {"i": [4, 16], "b": [2, 2]}, "y (Col2Im)", "ConvTranspose"),
    "a zero point": ("(float[4,8] x) => (float[4,8] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
                     {"s": SCALE, "z": np.int8(3)}, "zero points other than 0 at q (QuantizeLinear)", "ActivationSymm"),
    "a quantized bias": ("(float[4,8] x) => (float[4,8] y) { b = DequantizeLinear(t, s) y = Add(x, b) }",
                         {"s": SCALE, "t": np.zeros(8, np.int32)}, "INT32 (a bias?) at b (Dequantize", "QuantizeBias"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_parser_refuses_is_told_before_the_build(name: str) -> None:
    text, weights, found, way = REFUSED[name]
    model = toy(f"m {text}", **weights)
    told = lab.diagnose(model)
    assert found in told.evidence
    assert way in told.fix
    with pytest.raises(lab.BuildError) as caught:
        lab.build(model, progress=False)
    assert caught.value.stage == "parse"
    assert way in caught.value.diagnosis.fix
