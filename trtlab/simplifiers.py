"""ONNX Runtime's graph optimizer as a function from model to model, as the other simplifiers are."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trtlab.errors import ModelError

if TYPE_CHECKING:
    import onnx

    from trtlab.onnx_model import Model

LEVELS = {"basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}


def optimized_by_onnxruntime(model: Model, level: Literal["basic", "extended", "all"] = "basic") -> onnx.ModelProto:
    """The graph that ONNX Runtime would run on this CPU, as a model; the given model is not changed.

    Like `python -m onnxruntime.tools.optimize_onnx_model --opt_level basic in.onnx out.onnx`. From "extended" on it
    holds operators that only ONNX Runtime knows. Raises ModelError for an unknown level or a model it cannot read.
    """
    import onnx
    import onnxruntime
    from onnxruntime.tools.onnx_model_utils import optimize_model

    from trtlab.external_data import read_whole

    if level not in LEVELS:
        raise ModelError(f"ONNX Runtime has no level '{level}'.", fix=f"choose {', '.join(LEVELS)}.")
    proto = read_whole(model)
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        onnx.save(proto, before)
        try:
            optimize_model(before, after, getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level]))
        except Exception as error:  # its exceptions have no base class but this
            raise ModelError(
                f"ONNX Runtime cannot optimise the model: {str(error).strip()}",
                fix="'polygraphy check lint' says more.",
            ) from error
        return onnx.load(after)
