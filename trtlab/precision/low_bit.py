"""FP8, INT4 and FP4 on one matrix product: what does a format cost in accuracy, what does it save, where is it built?

The ONNX nodes that make a format are the lesson's; here is what surrounds them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trtlab.build import build
from trtlab.errors import AssetError, BuildError, ModelError
from trtlab.fate import owners
from trtlab.numerics import sqnr

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import pandas as pd

TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120")
_OPSET = 23  # the first whose DequantizeLinear takes FP4
_FP4_MAX = 6.0
_REFUSAL = "because the model contains HW-specific datatypes:"


def classifier() -> tuple[np.ndarray, np.ndarray]:
    """EfficientNet-Lite0's trained classifier: weights, float32 (1280, 1000), and its inputs, float16 (20, 1280).

    The inputs are what the network computes for the 20 photos of datasets.imagenet_photos().
    """
    import numpy as np
    import onnx

    from trtlab import datasets, models
    from trtlab.numerics import run

    model = onnx.load(models.efficientnet_lite0().onnx())
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == gemm.input[1])
    features = run(model, {"x": datasets.imagenet_photos().images}, outputs=[gemm.input[0]])[gemm.input[0]]
    return np.ascontiguousarray(onnx.numpy_helper.to_array(weight).T), features.astype(np.float16)


def product(nodes: Sequence[onnx.NodeProto], x: str = "x", **constants: np.ndarray) -> onnx.ModelProto:
    """A model y = `x` @ w in FP16: `nodes` make the tensor "w" out of `constants`, and `x` where it is not the input.

    The largest constant is the weights (K, M), the input "x" FP16 (N, K), the output "y" FP16 (N, M). Raises ModelError
    where nothing makes "w" or `x`, or where ONNX's checker finds a fault.
    """
    import numpy as np
    import onnx

    if not constants:
        raise ModelError("A product needs weights.", fix="pass them by name, such as w=array.")
    made = {"x", *constants, *(name for node in nodes for name in node.output)}
    for name in ("w", x):
        if name not in made:
            raise ModelError(
                f"Nothing makes the tensor '{name}' that the product reads.",
                fix=f"let the last node's output be '{name}', or pass {name}=array.",
            )
    sizes = max((np.shape(value) for value in constants.values()), key=math.prod)
    if len(sizes) != 2:
        raise ModelError(f"Weights of shape {sizes} are no matrix.", fix="pass them as (inputs, outputs).")
    half, helper = onnx.TensorProto.FLOAT16, onnx.helper
    graph = helper.make_graph(
        [*nodes, helper.make_node("MatMul", [x, "w"], ["y"], "product")],
        "product",
        [helper.make_tensor_value_info("x", half, ["N", sizes[0]])],
        [helper.make_tensor_value_info("y", half, ["N", sizes[1]])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("trt", 1)]  # trt: TensorRT's own operators
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelError(f"The nodes do not make a model: {reason}.", fix="compare them with the lesson's.") from error
    return model


def compare_formats(
    models: Mapping[str, onnx.ModelProto], x: np.ndarray, y: np.ndarray, targets: Sequence[str] = TARGETS
) -> pd.DataFrame:
    """One row a model of `product`: size, SQNR of its result against `y`, and which targets build it.

    Columns: format, bits (a weight, its scales included), KB (weights in the engine), SQNR (dB, on the CPU), kernel
    reads (activation × weight types of the product's kernel, on the last target that builds it) and a column for each
    target: "builds", or the types that TensorRT refuses there. Weights are taken to be (x's columns, y's columns).
    """
    import pandas as pd

    if not models or not targets:
        raise AssetError("There is nothing to compare.", fix="give at least one model and one target.")
    count = x.shape[1] * y.shape[1]
    rows = []
    for name, model in models.items():
        built = {target: _engine_or_refusal(model, target, x.shape) for target in targets}
        engines = [found for found in built.values() if not isinstance(found, str)]
        engine = engines[-1] if engines else None
        stored = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
        rows.append(
            {
                "format": name,
                "bits": round(8 * stored / count, 2),
                "KB": engine and round(engine.weight_bytes / 1000),
                "SQNR": round(sqnr(y, evaluate(model, x)), 1),
                "kernel reads": engine and _operands(engine, count),
                **{target: found if isinstance(found, str) else "builds" for target, found in built.items()},
            }
        )
    return pd.DataFrame(rows)


def evaluate(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """`model`'s output on the CPU, by ONNX's reference evaluator; ONNX Runtime 1.32 has no FP4.

    TensorRT's TRT_FP4DynamicQuantize is computed as its documentation describes it.
    """
    import numpy as np
    from onnx.reference import ReferenceEvaluator

    try:
        (result,) = ReferenceEvaluator(model, new_ops=[_fp4_dynamic_quantize()]).run(None, {"x": x})
        return np.asarray(result)
    except Exception as error:  # whatever NumPy raises inside an operator
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ModelError(
            f"ONNX's reference evaluator cannot run the model: {reason}.",
            fix="check that the scales' shapes fit the weights and the block size.",
        ) from error


def _engine_or_refusal(model: onnx.ModelProto, target: str, shape: tuple[int, ...]) -> Any:
    """The Engine, or the types for which TensorRT refuses the target; any other failure is raised."""
    try:
        return build(model, gpu=target, shapes={"x": shape}, progress=False)
    except BuildError as error:
        if _REFUSAL not in error.message:
            raise
        types = error.message.partition(_REFUSAL)[2].strip(" .").split(", ")  # such as fp4_e2m1, fp8_e4m3
        return "no " + ", ".join(name.partition("_")[0].upper() for name in types)


def _operands(engine: Any, count: int) -> str:
    """The types that the product's kernel reads, such as "FP16 × INT4"; the weight is the tensor of `count` values."""
    kernel = owners(engine)["product"]
    tensors = (*kernel.inputs, *kernel.constants)
    weight = next(tensor for tensor in tensors if math.prod(tensor.shape) == count)
    return f"{kernel.inputs[0].dtype} × {weight.dtype}"


def _fp4_dynamic_quantize() -> type:
    """TensorRT's operator for ONNX's reference evaluator: FP4 values, and an FP8 scale for each block along a row."""
    import numpy as np
    from ml_dtypes import float4_e2m1fn, float8_e4m3fn
    from onnx.reference.op_run import OpRun

    class TRT_FP4DynamicQuantize(OpRun):  # noqa: N801  (the operator's name)
        op_domain = "trt"

        def _run(
            self, x: np.ndarray, scale: np.ndarray, axis: int = -1, block_size: int = 16, scale_type: int = 17
        ) -> tuple[np.ndarray, np.ndarray]:
            blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, block_size)
            scales = (np.abs(blocks).max(-1) / _FP4_MAX / np.float32(scale)).astype(float8_e4m3fn)
            real = scales.astype(np.float32)[..., None] * np.float32(scale)
            values = np.divide(blocks, real, out=np.zeros_like(blocks), where=real > 0)
            return np.clip(values, -_FP4_MAX, _FP4_MAX).reshape(x.shape).astype(float4_e2m1fn), scales

    return TRT_FP4DynamicQuantize
