"""Which nodes suffer from INT8? Quantize one at a time and rank them."""

from __future__ import annotations

import pandas as pd

from trtlab.engine import Engine, Port
from trtlab.numerics import cosine, run, sqnr
from trtlab.numerics.samples import Samples, batches
from trtlab.onnx_model import Model, read_whole
from trtlab.precision.in_engine import multiply_adds
from trtlab.precision.int8 import Quantized, quantize
from trtlab.precision.placement import prepare


def sensitivity(model: Model, samples: Samples, quantized: Quantized) -> pd.DataFrame:
    """What each node costs when it alone is in INT8, worst first: node, op, sqnr_db, cosine, share.

    `quantized` is what `quantize` made of `model`: its scales serve all, nothing is calibrated again. SQNR and cosine
    are of the first output against `model`'s, on an FP32 base and ONNX Runtime; `share` is the node's part, 0 to 1, of
    the graph's multiply-adds in convolutions and matrix products, at the shapes of the samples. Raises AssetError where
    the scales are of another model, and for samples that do not fit.
    """
    proto = prepare(read_whole(model))
    output = proto.graph.output[0].name
    right = run(proto, samples, outputs=[output])[output]
    first = next(batches(samples, proto, 1))
    ports = tuple(Port(name, "Input", str(array.dtype), array.shape) for name, array in first.items())
    products = multiply_adds(proto, Engine(layers=(), ports=ports)).set_index("node")
    shares, rows = products["multiply_adds"] / products["multiply_adds"].sum(), []
    for node in quantized.quantized:
        alone = quantize(
            proto, None, base="fp32", nodes=[node], residual=bool(quantized.sums), scales=quantized.scales
        ).model
        found = run(alone, samples, outputs=[output])[output]
        rows.append((node, products["op"][node], sqnr(right, found), cosine(right, found), shares[node]))
    table = pd.DataFrame(rows, columns=["node", "op", "sqnr_db", "cosine", "share"])
    return table.sort_values("sqnr_db", kind="stable", ignore_index=True)
