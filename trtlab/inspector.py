"""Read the JSON of IEngineInspector, as TensorRT 8, 10 and 11 write it, into the same fields as a build log."""

from __future__ import annotations

import json
import re
from typing import Any

from trtlab.buildlog import DTYPES, onnx_nodes
from trtlab.engine import Engine, Layer, Port, Tensor
from trtlab.errors import AssetError

_SHORT = {"float": "FP32", "half": "FP16", "bfloat16": "BF16", **{name.lower(): name for name in DTYPES.values()}}
_TYPE = re.compile(r"\b(FP32|FP16|BF16|FP8|FP4|U?INT8|INT4|INT32|INT64|BOOL|BFLOAT16|FLOAT|HALF)\b", re.IGNORECASE)
_MISSING_DETAIL = "build the engine with ProfilingVerbosity.DETAILED and ask for LayerInformationFormat.JSON."


def read_inspector(text: str) -> Engine:
    """The Engine in `text`; raises AssetError when it is not the inspector's JSON or holds layer names only."""
    try:
        content = json.loads(text)
        layers = content["Layers"]
        if not isinstance(layers, list):
            raise TypeError("'Layers' is not a list")
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise AssetError(
            f"This is not the JSON of an engine inspector ({reason}).",
            fix="pass what IEngineInspector.get_engine_information or trtexec --exportLayerInfo wrote.",
        ) from error
    if any(isinstance(layer, str) for layer in layers):
        raise AssetError("This inspector JSON holds only the names of the layers.", fix=_MISSING_DETAIL)
    try:
        return Engine(layers=tuple(map(_layer, layers)), ports=_ports(content, layers))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise AssetError(
            f"This inspector JSON has a part of another form than TensorRT 8, 10 and 11 write ({error}).",
            fix="export it again; " + _MISSING_DETAIL,
        ) from error


def _layer(entry: dict[str, Any]) -> Layer:
    name, profile = _split_profile(str(entry.get("Name", "")))
    metadata = entry.get("Metadata")
    nodes = onnx_nodes(str(metadata)) if metadata is not None else nodes_in_name(name)
    return Layer(
        name=name,
        type=str(entry.get("LayerType", "")),
        onnx_nodes=nodes,
        inputs=tuple(map(_tensor, entry.get("Inputs") or ())),
        outputs=tuple(map(_tensor, entry.get("Outputs") or ())),
        constants=(*map(_tensor, entry.get("Constants") or ()), *_weights(entry)),
        stream=int(entry.get("StreamId", 0)),
        tactic=entry.get("TacticName") or None,
        profile=profile,
    )


def nodes_in_name(name: str) -> tuple[str, ...]:
    """TensorRT 8 has no metadata: its layer names say it, "Conv_0 + Relu_1" and "PWN(PWN(Sigmoid_3), Mul_4)"."""
    if name.startswith(("Reformatting CopyNode", "reshape_", "squeeze_", "unsqueeze_", "{ForeignNode")):
        return ()
    parts = re.split(r" \+ | \|\| ", name)
    return tuple(
        dict.fromkeys(
            node.strip() for part in parts for node in re.sub(r"PWN\(|\)$", "", part).replace(")", "").split(",")
        )
    )


def _tensor(entry: dict[str, Any]) -> Tensor:
    layout = str(entry.get("Format/Datatype") or entry.get("Format") or "")
    named = str(entry.get("Datatype") or "")
    found = _TYPE.search(named) or _TYPE.search(layout)
    dtype = DTYPES.get(named) or (_SHORT[found[1].lower()] if found else "")
    return Tensor(
        name=_split_profile(str(entry.get("Name", "")))[0],
        shape=tuple(int(size) for size in entry.get("Dimensions") or ()),
        dtype=dtype,
        format=layout,
    )


def _weights(entry: dict[str, Any]) -> tuple[Tensor, ...]:
    """TensorRT 8 gives a count of weights in place of a list of constants."""
    found = []
    for key in ("Weights", "Bias"):
        value = entry.get(key)
        if isinstance(value, dict) and value.get("Count"):
            kind = str(value.get("Type", ""))
            found.append(Tensor(name=key.lower(), shape=(int(value["Count"]),), dtype=DTYPES.get(kind, kind)))
    return tuple(found)


def _ports(content: dict[str, Any], layers: list[dict[str, Any]]) -> tuple[Port, ...]:
    if "I/O Tensors" in content:
        return tuple(_port(entry) for entry in content["I/O Tensors"])
    read = {tensor.get("Name"): tensor for layer in layers for tensor in layer.get("Inputs") or ()}
    written = {tensor.get("Name"): tensor for layer in layers for tensor in layer.get("Outputs") or ()}
    ports = []
    for name in content.get("Bindings", ()):
        bare, profile = _split_profile(name)
        known = written.get(name) or read.get(name)
        if profile == 0:
            tensor = _tensor(known or {"Name": name})
            ports.append(Port(bare, "Output" if name in written else "Input", tensor.dtype, tensor.shape))
    return tuple(ports)


def _port(entry: dict[str, Any]) -> Port:
    named = str(entry.get("DataType") or entry.get("Datatype") or "")
    ranges = [item for item in entry.get("ProfileInfo") or () if isinstance(item, dict) and "MinShape" in item]
    return Port(
        name=str(entry.get("Name", "")),
        mode=str(entry.get("IOMode", "Input")),
        dtype=DTYPES.get(named, named),
        shape=tuple(int(size) for size in entry.get("Dimensions") or ()),
        profiles=tuple(tuple(tuple(item[key]) for key in ("MinShape", "OptShape", "MaxShape")) for item in ranges),
    )


def _split_profile(name: str) -> tuple[str, int]:
    """TensorRT marks the copies of later profiles: "conv1 [profile 1]" -> ("conv1", 1)."""
    match = re.search(r" \[profile (\d+)\]", name)
    return (name.replace(match[0], ""), int(match[1])) if match else (name, 0)
