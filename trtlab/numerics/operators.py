"""Operators of ONNX's reference evaluator where it does not compute as TensorRT and the ONNX standard say."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops import load_op


def _in_fp32(base: Any) -> type:
    """An operator that takes its 16-bit operands in FP32, statistics and sums too, and rounds its result once.

    That is what Tensor Cores do with FP16 and BF16, and stash_type with a normalisation; the reference evaluator sums
    up and squares in the type of the data. What NumPy adds up in FP32 itself, float16, takes it thirty times as long.
    """

    def _run(self: Any, *arrays: Any, **attributes: Any) -> tuple[np.ndarray, ...]:
        kind = arrays[0].dtype
        if kind.itemsize != 2:
            return tuple(base._run(self, *arrays, **attributes))
        wide = [array.astype(np.float32) if getattr(array, "dtype", None) == kind else array for array in arrays]
        first, *statistics = base._run(self, *wide, **attributes)  # which stay FP32 where a node writes them too
        return first.astype(kind), *statistics

    return type(base.__name__.partition("_")[0], (base,), {"op_domain": "", "_run": _run})


class BatchNormalization(load_op("", "BatchNormalization", 22)):  # type: ignore[misc]
    """With the running statistics at every opset: below 14 the reference evaluator mixes in those of the batch."""

    def _run(self, *arrays: Any, training_mode: int = 0, **attributes: Any) -> tuple[np.ndarray, ...]:
        known = {name: attributes[name] for name in ("epsilon", "momentum") if name in attributes}
        return tuple(super()._run(*arrays, training_mode=training_mode or 0, **known))


class GroupNormalization(OpRun):
    """With a scale for each group (opset 18) or channel (21); the reference evaluator has it as a function in FP16."""

    def _run(self, x: Any, scale: Any, bias: Any, epsilon: Any, num_groups: Any, **_: Any) -> tuple[np.ndarray, ...]:
        groups, channels = x.reshape(len(x), num_groups, -1), [1, x.shape[1], *[1] * (x.ndim - 2)]
        deviation = groups - groups.mean(-1, keepdims=True)
        normal = (deviation / np.sqrt(groups.var(-1, keepdims=True) + epsilon)).reshape(x.shape)
        scale, bias = (np.repeat(one, x.shape[1] // len(one)).reshape(channels) for one in (scale, bias))
        return (normal * scale + bias,)


def _flattening(base: Any) -> type:
    """Softmax and its like; below opset 13 over all axes from `axis` on, which is 1 unless the node names another."""

    def _run(self: Any, x: Any) -> tuple[np.ndarray, ...]:
        if self.run_params["opsets"][""] >= 13:
            return tuple(base._run(self, x))
        axis = next((one.i for one in self.onnx_node.attribute if one.name == "axis"), 1) % x.ndim
        self.axis = -1
        return (base._run(self, x.reshape(*x.shape[:axis], -1))[0].reshape(x.shape),)

    return type(base.__name__, (base,), {"_run": _run})


# What has a sum, a mean or a variance inside. ReduceL2 is not among them: ONNX squares in the type of the data.
_SUMMING = (
    "Conv", "Gemm", "MatMul", "ReduceSum", "ReduceMean", "GlobalAveragePool", "AveragePool", "ReduceLogSumExp",
    "LayerNormalization", "RMSNormalization", "InstanceNormalization",
)  # fmt: skip
_OWN = [BatchNormalization, GroupNormalization, *(_flattening(load_op("", op, 22)) for op in ("Softmax", "LogSoftmax"))]
OPERATORS = [_in_fp32(base) for base in (*_OWN, *(load_op("", name, 23) for name in _SUMMING))]
