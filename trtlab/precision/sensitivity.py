"""Which nodes suffer from INT8? Quantize one at a time, rank them, and keep the worst in the base precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import onnx
import pandas as pd

from trtlab.building import build
from trtlab.datasets import Dataset
from trtlab.engine import Engine, Port
from trtlab.errors import AssetError, ModelError
from trtlab.numerics import cosine, run, score, sqnr
from trtlab.numerics.samples import Samples, batches
from trtlab.onnx_model import Model, read_whole
from trtlab.precision.in_engine import int8_share, multiply_adds
from trtlab.precision.int8 import Quantized, quantize


def sensitivity(model: Model, samples: Samples, quantized: Quantized, *, per_channel: bool = True) -> pd.DataFrame:
    """What each node costs when it alone is in INT8, worst first: node, op, sqnr_db, cosine, share.

    `quantized` is what `quantize` made of `model`: its scales serve all, nothing is calibrated again. SQNR and cosine
    are of the first output against `model`'s, on an FP32 base and ONNX Runtime; `share` is the node's part, 0 to 1, of
    the graph's multiply-adds in convolutions and matrix products. Raises ModelError where the scales are of another
    model, and AssetError for samples that do not fit.
    """
    proto = read_whole(model)
    ops = {node.name: node.op_type for node in proto.graph.node}
    _check_nodes(quantized.quantized, ops, "what was quantized is another model")
    right, work = _first_output(proto, samples), _work(proto, samples)
    rows = []
    for node in quantized.quantized:
        alone = _again(proto, samples, quantized, per_channel, "fp32", [node])
        result = _first_output(alone.model, samples)
        rows.append((node, ops[node], sqnr(right, result), cosine(right, result), work[node] / sum(work.values())))
    table = pd.DataFrame(rows, columns=["node", "op", "sqnr_db", "cosine", "share"])
    return table.sort_values("sqnr_db", kind="stable", ignore_index=True)


def keep_worst(
    model: Model,
    dataset: Dataset,
    quantized: Quantized,
    ranking: Sequence[str],
    keep: Iterable[int] = (0, 1, 2, 4),
    *,
    per_channel: bool = True,
    gpu: str | None = None,
) -> pd.DataFrame:
    """What is gained by leaving the first `k` nodes of `ranking` in the base of `quantized`; one row for each k.

    Columns: kept (k), int8_percent (of the multiply-adds in convolutions and matrix products), share_from, sqnr_db and
    cosine (first output against `model`'s), same_top1 (samples that keep their class), right (samples that get their
    label) and count. With `gpu` each model is compiled for it and the share is that of the engine's kernels; without,
    it is that of the graph's nodes, which a compiler need not follow; `share_from` says which. One node at least stays
    quantized. Raises ModelError for a ranking of another model and AssetError for a k that cannot be.
    """
    proto = read_whole(model)
    counts = list(keep)
    _check_nodes(ranking, quantized.quantized, "the ranking is of another model")
    _check_counts(counts, min(len(ranking), len(quantized.quantized) - 1))
    samples = {_only_input(proto): dataset.images}
    right, work = _first_output(proto, samples), _work(proto, samples)
    rows = []
    for k in counts:
        nodes = [node for node in quantized.quantized if node not in ranking[:k]]
        some = _again(proto, samples, quantized, per_channel, quantized.base, nodes)
        share = sum(work[node] for node in some.quantized) / sum(work.values())
        if gpu is not None:
            share = _compiled_share(some.model, gpu, samples)
        origin = {"kept": k, "int8_percent": 100 * share, "share_from": f"engine for {gpu}" if gpu else "graph"}
        rows.append(origin | _scores(right, _first_output(some.model, samples), dataset.labels))
    return pd.DataFrame(rows)


def _scores(right: np.ndarray, result: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The logits of two models (N, classes) compared with each other and with the labels."""
    return {
        "sqnr_db": sqnr(right, result),
        "cosine": cosine(right, result),
        "same_top1": int((right.argmax(1) == result.argmax(1)).sum()),
        "right": score(result, labels).right,
        "count": len(labels),
    }


def _again(
    model: onnx.ModelProto, samples: Samples, quantized: Quantized, per_channel: bool, base: str, nodes: Sequence[str]
) -> Quantized:
    """`nodes` alone in INT8, with the scales that there are."""
    kind: Literal["fp16", "fp32"] = "fp16" if base == "fp16" else "fp32"
    sums, scales = bool(quantized.sums), quantized.scales
    return quantize(model, samples, per_channel=per_channel, base=kind, nodes=nodes, residual=sums, scales=scales)


def _first_output(model: onnx.ModelProto, samples: Samples) -> np.ndarray:
    name = model.graph.output[0].name
    return run(model, samples, outputs=[name])[name]


def _work(model: onnx.ModelProto, samples: Samples) -> dict[str, int]:
    """The multiply-adds of each convolution and matrix product, from the graph and the shapes of the samples."""
    feed = next(batches(samples, model, 1))
    ports = tuple(Port(name, "Input", str(array.dtype), array.shape) for name, array in feed.items())
    table = multiply_adds(model, Engine(layers=(), ports=ports))
    return dict(zip(table["node"], table["multiply_adds"], strict=True))


def _compiled_share(model: onnx.ModelProto, gpu: str, samples: Samples) -> float:
    shapes = {name: array.shape for name, array in next(batches(samples, model, 1)).items()}
    return int8_share(build(model, gpu=gpu, shapes=shapes, progress=False), model)


def _only_input(model: onnx.ModelProto) -> str:
    weights = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in weights]
    if len(names) != 1:
        raise AssetError(
            f"The model has {len(names)} inputs, and a data set has images for one.", fix="use a model with one input."
        )
    return names[0]


def _check_nodes(names: Iterable[str], known: Iterable[str], why: str) -> None:
    there = set(known)
    for name in names:
        if name not in there:
            raise ModelError(
                f"There is no node '{name}' to quantize: {why}.", fix="use quantize() and sensitivity() of this model."
            )


def _check_counts(keep: Sequence[int], most: int) -> None:
    wrong = [k for k in keep if not 0 <= k <= most]
    if wrong or not keep:
        raise AssetError(
            f"The worst {wrong[0]} nodes cannot be kept." if wrong else "There is no number of nodes to keep.",
            fix=f"give numbers from 0 to {most}, as one node at least stays quantized.",
        )
