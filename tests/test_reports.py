"""What people report, by its kind; most kinds are held where their part is tested, and the rest here.

Sizes nobody gave: test_explain. LayerNormalization and BatchNormalization in true half precision, masks of minus
infinity: test_numerics, test_half, test_quantize. Names of GPUs: test_gpus. An If that captures: test_half,
test_quantize. Branches of unequal rank, K of a TopK: test_clinic. The count of a Loop: test_profiles_check. Pasted
messages: test_diagnose.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import trtlab as lab
from trtlab.messages import table, way_out
from trtlab.toys import toy

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
