"""diagnose(): a message, an exception or a model in; cause, evidence and fix out."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxslim
import pytest
import tiny_models as tiny

import trtlab as lab
from trtlab.errors import Diagnosis
from trtlab.messages import diagnose_text, plain
from trtlab.toys import toy

NOISE = (
    "[ERROR] [defaultAllocator.cpp::catchCudaError::30] Error Code 1: Cuda Runtime (In catchCudaError: cudaError 35)"
)


KNOWN = {
    "No Op registered for Rellu with domain_version of 17": ("opset 17 has no operator 'Rellu'", "spelling"),
    "Plugin not found, are the plugin name, version, and namespace correct?": ("no importer and no plugin", "extract"),
    "Nodes in a graph must be topologically sorted, however input 'q' of node: ": ("before it writes", "toposort"),
    "Network has dynamic or shape inputs, but no optimization profile has been defined.": ("profile", "shapes="),
    "[profile.cpp] MIN<=OPT<=MAX is not satisfied for x": ("min <= opt <= max", "compare"),
    "Cannot compile operation 'gemm' for Turing (SM75): FP32 is not supported": ("(SM75) cannot run 'gemm'", "FP16"),
    "Cannot compile for target(s) sm75, because the model contains HW-specific datatypes: b16": (
        "computes in BF16, which SM75 does not have", "newer target"),
    "BF16 is not supported on this platform": ("no BF16", "newer target"),
    "[defaultAllocator.cpp] Requested amount of GPU memory (99 bytes) could not be allocated": ("memory", "smaller"),
    "std::bad_alloc": ("more memory", "workspace"),
    "CUDA driver version is insufficient for CUDA runtime version": ("no NVIDIA GPU", "gpu="),
    "Serialization (Serialization assertion safeVersionRead == kSAFE_SERIALIZATION_VERSION failed.": ("other", "again"),
    "Assertion failed: resolvedWeights(axesWeights): Axis input must resolve to a build-time constant!": (
        "must know at build time", "optimize=True"),
    "dimensions must match for elementwise": ("do not fit", "infer_shapes"),
}  # fmt: skip


@pytest.mark.parametrize(("message", "cause", "fix"), [(message, *told) for message, told in KNOWN.items()])
def test_known_messages(message: str, cause: str, fix: str) -> None:
    found = lab.diagnose(message)
    assert cause in found.cause
    assert fix in found.fix
    assert found.evidence


@pytest.mark.parametrize(
    "message", ["Something wholly new in the flux capacitor", "Axis 3 is reserved for the rank of shape tensors"]
)
def test_unknown_message_is_said_to_be_unknown(message: str) -> None:
    assert lab.diagnose(message) == Diagnosis("This message is not one that trtlab knows.", message)


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\0", "{0}", "x" * 100_000, "[ONNX Layer: ]", "%s %d"])
def test_any_text_has_a_diagnosis(text: str) -> None:
    assert isinstance(lab.diagnose(text), Diagnosis)


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
    assert "no file" in lab.diagnose("nowhere.onnx").cause
    assert "no file" in lab.diagnose(tmp_path / "nowhere.onnx").cause


def test_message_that_ends_in_a_file_name_is_a_message(tmp_path: Path) -> None:
    assert lab.diagnose("Plugin not found while reading my net.onnx").cause.startswith("TensorRT has no importer")


def test_thing_that_is_neither() -> None:
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
