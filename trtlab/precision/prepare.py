"""An FP32 model as quantisation needs it: every node named, constants as weights, an opset that has what INT8 needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtlab.errors import ModelError
from trtlab.node_names import node_names

if TYPE_CHECKING:
    import onnx

OPSET = 19
"""From here on a Q/DQ scale may be FP16 (and from 13 on there may be one a channel)."""


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` with unique node names and with its Constant nodes turned into weights."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(_raised(model))
    names = node_names(copy.graph)
    kept = []
    for name, node in zip(names, copy.graph.node, strict=True):
        node.name = name
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
        else:
            tensor = copy.graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy


def _raised(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` in opset 19, or as it is where that is newer."""
    import onnx

    version = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=1)
    if version >= OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises what its C++ part does
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"The model is in opset {version}, and ONNX cannot convert it to {OPSET}, which INT8 needs: {reason}.",
            fix=f"export it again with opset_version={OPSET} or newer.",
        ) from error
