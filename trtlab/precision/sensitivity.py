"""Which nodes suffer from INT8? Quantize one at a time and rank them."""

from __future__ import annotations

import onnx
import pandas as pd

from trtlab.engine import Engine, Port
from trtlab.errors import ModelError
from trtlab.numerics import cosine, run, sqnr
from trtlab.numerics.samples import Samples, batches
from trtlab.onnx_model import Model, read_whole
from trtlab.precision.in_engine import multiply_adds
from trtlab.precision.int8 import Quantized, quantize


def sensitivity(model: Model, samples: Samples, quantized: Quantized, *, per_channel: bool = True) -> pd.DataFrame:
    """What each node costs when it alone is in INT8, worst first: node, op, sqnr_db, cosine, share.

    `quantized` is what `quantize` made of `model`: its scales serve all, nothing is calibrated again. SQNR and cosine
    are of the first output against `model`'s, on an FP32 base and ONNX Runtime; `share` is the node's part, 0 to 1, of
    the graph's multiply-adds in convolutions and matrix products. Raises ModelError where the scales are of another
    model, and AssetError for samples that do not fit.
    """
    proto = read_whole(model)
    ops, output = {node.name: node.op_type for node in proto.graph.node}, proto.graph.output[0].name
    for node in quantized.quantized:
        if node not in ops:
            what = f"There is no node '{node}' to quantize: what was quantized is another model."
            raise ModelError(what, fix="use quantize() and sensitivity() of this model.")
    shares = product_shares(proto, samples)
    right = run(proto, samples, outputs=[output])[output]
    rows = []
    for node in quantized.quantized:
        alone = quantize(
            proto, None, per_channel=per_channel, base="fp32", nodes=[node], residual=bool(quantized.sums),
            scales=quantized.scales,
        )  # fmt: skip
        found = run(alone.model, samples, outputs=[output])[output]
        rows.append((node, ops[node], sqnr(right, found), cosine(right, found), shares[node]))
    table = pd.DataFrame(rows, columns=["node", "op", "sqnr_db", "cosine", "share"])
    return table.sort_values("sqnr_db", kind="stable", ignore_index=True)


def product_shares(model: onnx.ModelProto, samples: Samples) -> dict[str, float]:
    """The part, 0 to 1, of each convolution and matrix product in their multiply-adds, at the shapes of the samples."""
    feed = next(batches(samples, model, 1))
    ports = tuple(Port(name, "Input", str(array.dtype), array.shape) for name, array in feed.items())
    table = multiply_adds(model, Engine(layers=(), ports=ports))
    return dict(zip(table["node"], table["multiply_adds"] / table["multiply_adds"].sum(), strict=True))
