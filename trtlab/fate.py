"""What became of each ONNX node: the layer that runs it, or why nothing needs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtlab.engine import Engine, Layer
from trtlab.in_place import concats_in_place
from trtlab.node_names import node_names
from trtlab.onnx_model import read_model
from trtlab.vanishing import vanishing_reasons

if TYPE_CHECKING:
    import pandas as pd

    from trtlab.onnx_model import Model

# Which layer owns a node that several layers name: the one that computes it, not its prologue or epilogue.
_OWNERS = ("correlation", "gemm", "runtime_fusion", "mha")


def fate(engine: Engine, model: Model) -> pd.DataFrame:
    """One row an ONNX node, in the graph's order: node, op, layer (or None), reason ("" when a layer runs it).

    A node in no layer is `constant` (its value is known at build time), `unreachable` (no output depends on it),
    `no-op` (its output is its input, perhaps with another shape), `shape` (it computes sizes or chooses a branch, not
    data), `duplicate` (another node computes the same), `cancelled` (a Transpose that others undo), `layout` (one at a
    matrix product, which reads and writes in any order) or `in place` (a Concat whose parts are written where they
    belong, as the engine's tensors show); `unexplained` when there is no such reason.
    """
    import pandas as pd

    proto = read_model(model)
    names = node_names(proto.graph)
    reasons = vanishing_reasons(proto)
    in_place = dict.fromkeys(concats_in_place(engine, proto.graph), "in place")
    constant = {name for name, reason in zip(names, reasons, strict=True) if reason == "constant"}
    # The compiler puts the names of what it computed beforehand on the layer that reads the result.
    owner = {
        name: layer
        for name, layer in owners(engine).items()
        if name not in constant or constant.issuperset(layer.onnx_nodes)
    }
    rows = [
        {
            "node": name,
            "op": node.op_type,
            "layer": owner[name].name if name in owner else None,
            "reason": "" if name in owner else reason or in_place.get(node.output[0], "unexplained"),
        }
        for name, node, reason in zip(names, proto.graph.node, reasons, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["node", "op", "layer", "reason"])
    table["layer"] = table["layer"].astype(object).where(table["layer"].notna(), None)
    return table


def unexplained(engine: Engine, model: Model) -> list[str]:
    """The names of the nodes that are in no layer and have no reason for it, which should be none."""
    table = fate(engine, model)
    return table.loc[table["reason"] == "unexplained", "node"].tolist()


def owners(engine: Engine) -> dict[str, Layer]:
    """The one layer that does the work of each node, for the first profile."""
    ranked: dict[str, tuple[int, Layer]] = {}
    for layer in engine.layers:
        if layer.profile:
            continue
        rank = _OWNERS.index(layer.type) if layer.type in _OWNERS else len(_OWNERS) + (not layer.is_kernel)
        for node in layer.onnx_nodes:
            if node not in ranked or rank < ranked[node][0]:
                ranked[node] = (rank, layer)
    return {node: layer for node, (_, layer) in ranked.items()}
