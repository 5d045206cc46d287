"""FP16 and BF16: NVIDIA's AutoCast gives every node a type, and we report what it keeps in FP32 and why."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trtlab.errors import AssetError, ModelError
from trtlab.external_data import read_whole
from trtlab.node_names import node_names
from trtlab.onnx_model import tensors, without_weights
from trtlab.precision.autocast import autocast, kept_nodes, sentence
from trtlab.samples import batches

if TYPE_CHECKING:
    import onnx
    import pandas as pd

    from trtlab.onnx_model import Model
    from trtlab.samples import Samples

Kind = Literal["fp16", "bf16"]


@dataclass(frozen=True)
class HalfModel:
    """A model in mixed precision. `kept` has one row a node left in FP32: node, op, reason.

    `nodes` counts all nodes but the casts that were added, `casts` those; `notes` says what the conversion assumed or
    had to change.
    """

    model: onnx.ModelProto = field(repr=False)
    kind: Kind
    kept: pd.DataFrame = field(repr=False)
    nodes: int
    casts: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"{self.nodes - len(self.kept)} of {self.nodes} nodes in {self.kind.upper()}, {self.casts} casts"
        return "\n".join([head, *self.notes])

    def _repr_html_(self) -> str:
        table = self.kept.to_html(index=False) if len(self.kept) else ""
        return "".join(f"<p>{line}</p>" for line in str(self).splitlines()) + table


def to_half(
    model: Model,
    kind: Kind,
    samples: Samples | None = None,
    *,
    keep: Sequence[str] = (),
    data_max: float = 512,
    keep_io_types: bool = True,
    batch: int = 32,
) -> HalfModel:
    """Convert a model to FP16 or BF16 with ModelOpt's AutoCast, and leave in FP32 what would not survive.

    That is: the nodes named in `keep`, and loops; those that read or write a value beyond ±`data_max` on the samples
    (at 512, FP16 numbers are 0.5 apart); those with a weight beyond ±65,504; and operators that ONNX has no such form
    of. Without samples no activation is judged. AutoCast holds all tensors of all samples at once, so give it tens of
    them. Inputs and outputs stay FP32 unless `keep_io_types` is False. Files are written only to a temporary folder.

    Raises ModelError for a model that is in half precision already, with NaN or infinite weights, with operators that
    are not ONNX's own, or of more than 2 GiB, and AssetError for samples that do not fit and for unknown names.
    """
    if kind not in ("fp16", "bf16"):
        raise AssetError(f"There is no half precision '{kind}'.", fix="ask for 'fp16' or 'bf16'.")
    proto = _named_copy(read_whole(model))
    _check(proto, keep)
    loops = [node.name for node in proto.graph.node if node.op_type in _LOOPS and node.name not in keep]
    with tempfile.TemporaryDirectory(prefix="trtlab-half-") as folder:
        data = _write_samples(samples, proto, Path(folder), batch)
        converted, messages = autocast(proto, kind, data, [*keep, *loops], data_max, keep_io_types, Path(folder))
    kept = kept_nodes(converted, messages, data_max)
    kept.loc[kept["node"].isin(loops), "reason"] = "AutoCast does not convert what is inside a loop"
    casts = sum(
        node.op_type == "Cast" and node.name not in {n.name for n in proto.graph.node} for node in converted.graph.node
    )
    notes = [] if data else ["No samples were given, so no activation was judged: only weights, operators and names."]
    notes += [sentence(record.getMessage()) for record in messages if record.levelno >= logging.WARNING]
    return HalfModel(converted, kind, kept, len(converted.graph.node) - casts, casts, tuple(dict.fromkeys(notes)))


_LOOPS = frozenset({"Loop", "Scan"})


def _named_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose nodes all have a name of their own: AutoCast tells them apart by it."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name, node in zip(node_names(model.graph), copy.graph.node, strict=True):
        node.name = name
    if not all(value.type.tensor_type.HasField("shape") for value in copy.graph.output):
        with contextlib.suppress(onnx.shape_inference.InferenceError):  # AutoCast wants to see the shapes of outputs
            inferred = onnx.shape_inference.infer_shapes(without_weights(copy), data_prop=True).graph.output
            for value, known in zip(copy.graph.output, inferred, strict=True):
                if known.type.tensor_type.HasField("shape"):
                    value.type.CopyFrom(known.type)
    return copy


def _check(model: onnx.ModelProto, keep: Sequence[str]) -> None:
    """Raise for what AutoCast would convert to something wrong, or fail on without saying why."""
    import difflib

    names = [node.name for node in model.graph.node]
    for name in keep:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
            raise AssetError(f"The model has no node '{name}' to keep.", fix=f"name {' or '.join(close)}.")
    _check_single(model)
    check_finite(model)
    _check_operators(model)
    for value in model.graph.output:
        if not value.type.tensor_type.HasField("shape"):
            raise ModelError(
                f"Output '{value.name}' has no shape, none can be inferred, and AutoCast needs one.",
                fix="declare it; a name such as 'N' will do for a size that may vary.",
            )


def _check_single(model: onnx.ModelProto) -> None:
    """Raise for weights in half precision, unless Q/DQ nodes are there, whose scales may have that type."""
    import onnx

    quantized = any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    for tensor in () if quantized else tensors(model):
        if tensor.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
            raise ModelError(
                f"The weights '{tensor.name}' are {onnx.TensorProto.DataType.Name(tensor.data_type)} already.",
                fix="build() this model as it is, or start from its FP32 version.",
            )


def _check_operators(model: onnx.ModelProto) -> None:
    import onnx

    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
            raise ModelError(
                f"Node '{node.name}' is a {node.domain or 'ai.onnx'}::{node.op_type}, which is not an operator of "
                "ONNX: AutoCast cannot tell the types it takes.",
                fix="replace it with ONNX operators, or convert the parts before and after it.",
            )


def check_finite(model: onnx.ModelProto) -> None:
    """Raise ModelError, naming tensor and node, for weights that are NaN or infinite."""
    import numpy as np
    import onnx

    for tensor in tensors(model):
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
            values = onnx.numpy_helper.to_array(tensor)
            bad = int(values.size - np.isfinite(values).sum())
            if bad:
                reader = next((node for node in model.graph.node if tensor.name in node.input), None)
                where = f" of node '{reader.name}' ({reader.op_type})" if reader else ""
                raise ModelError(
                    f"The weights '{tensor.name}'{where} hold {bad:,} values that are NaN or infinite.",
                    fix="look at the training: such a model has no right output in any precision.",
                )


def _write_samples(samples: Samples | None, model: onnx.ModelProto, folder: Path, batch: int) -> Path | None:
    import numpy as np

    if samples is None:
        return None
    data = folder / "samples"
    data.mkdir()
    for number, feed in enumerate(batches(samples, model, batch)):
        np.savez(data / f"{number:06d}.npz", **feed)  # type: ignore[arg-type]
    return data
