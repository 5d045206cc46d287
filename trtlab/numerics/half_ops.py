"""Sums in half precision for ONNX's reference evaluator: products and reductions add up in FP32 and round once.

That is what Tensor Cores do with FP16 and BF16 operands, and what NumPy does with float16, only that NumPy takes thirty
times as long for it; BF16 it sums up in BF16. Everything else stays with the reference evaluator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.ops.op_conv import Conv as _Conv
from onnx.reference.ops.op_gemm import Gemm_7 as _Gemm
from onnx.reference.ops.op_global_average_pool import GlobalAveragePool as _GlobalAveragePool
from onnx.reference.ops.op_matmul import MatMul as _MatMul
from onnx.reference.ops.op_reduce_mean import ReduceMean_18 as _ReduceMean
from onnx.reference.ops.op_reduce_sum import ReduceSum_13 as _ReduceSum


def _widely(compute: Any, arrays: tuple[Any, ...], attributes: dict[str, Any]) -> tuple[np.ndarray, ...]:
    """`compute` on FP32 copies of the arrays, its results rounded to the type of the first."""
    kind = arrays[0].dtype
    if kind.itemsize != 2:
        return tuple(compute(*arrays, **attributes))
    wide = [array.astype(np.float32) if getattr(array, "dtype", None) == kind else array for array in arrays]
    return tuple(result.astype(kind) for result in compute(*wide, **attributes))


class Conv(_Conv):
    """A convolution with an FP32 accumulator."""

    op_domain = ""

    def _run(self, *arrays: Any, **attributes: Any) -> tuple[np.ndarray, ...]:
        return _widely(super()._run, arrays, attributes)


class Gemm(_Gemm):
    """A matrix product with bias and an FP32 accumulator."""

    op_domain = ""

    def _run(self, *arrays: Any, **attributes: Any) -> tuple[np.ndarray, ...]:
        return _widely(super()._run, arrays, attributes)


class MatMul(_MatMul):
    """A matrix product with an FP32 accumulator."""

    op_domain = ""

    def _run(self, *arrays: Any, **attributes: Any) -> tuple[np.ndarray, ...]:
        return _widely(super()._run, arrays, attributes)


class ReduceSum(_ReduceSum):
    """A sum with an FP32 accumulator."""

    op_domain = ""

    def _run(self, *arrays: Any, **attributes: Any) -> tuple[np.ndarray, ...]:
        return _widely(super()._run, arrays, attributes)


class ReduceMean(_ReduceMean):
    """A mean with an FP32 accumulator."""

    op_domain = ""

    def _run(self, *arrays: Any, **attributes: Any) -> tuple[np.ndarray, ...]:
        return _widely(super()._run, arrays, attributes)


class GlobalAveragePool(_GlobalAveragePool):
    """A mean over the image with an FP32 accumulator."""

    op_domain = ""

    def _run(self, *arrays: Any, **attributes: Any) -> tuple[np.ndarray, ...]:
        return _widely(super()._run, arrays, attributes)


HALF_OPS = (Conv, Gemm, MatMul, ReduceSum, ReduceMean, GlobalAveragePool)
