"""Read the compiled engine out of TensorRT's own verbose build log.

With `ProfilingVerbosity.DETAILED` one message starts with `Layers:` and holds one entry a kernel, in the vocabulary of
`IEngineInspector`; the memory figures are messages of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from trtlab.engine import Engine, Layer, Port, Tensor
from trtlab.errors import AssetError

# The spellings of element types in TensorRT's log and inspector.
DTYPES = {
    "Float": "FP32", "Half": "FP16", "BFloat16": "BF16", "FP8": "FP8", "Int8": "INT8", "UInt8": "UINT8", "Int4": "INT4",
    "FP4": "FP4", "FP4E2M1": "FP4", "Int32": "INT32", "Int64": "INT64", "Bool": "BOOL",
}  # fmt: skip

_LAYER = re.compile(
    r"(?P<name>.*?), LayerType: (?P<type>\w*), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), StreamId: (?P<stream>-?\d+)"
    r"(?:, EventId: (?P<event>-?\d+))?, Metadata: (?P<nodes>.*)",
    re.DOTALL,
)

_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[-\d,]*)\], Strides: \[[^\]]*\], StrideOrder: \[[^\]]*\], "
    r"Datatype: (?P<dtype>\w+), Format: (?P<format>.*?) \}",
    re.DOTALL,
)

_PORT = re.compile(
    r"^ Name: (?P<name>.*?), IOMode: (?P<mode>\w+), DataType: (?P<dtype>\w+), Dimensions: \[(?P<shape>[-\d,]*)\]"
    r"(?P<rest>.*)",
    re.MULTILINE,
)

_RANGE = re.compile(r"MinShape: \[([-\d,]*)\], OptShape: \[([-\d,]*)\], MaxShape: \[([-\d,]*)\]")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]|\[ONNX Layer: |\s*$)", re.DOTALL)
_PROFILE = re.compile(r" \[profile (\d+)\]")
_GROUP = re.compile(r"_myl(\d+)_\d+$")

_MEMORY = {
    "activation_bytes": re.compile(r"^Total Activation Memory: (\d+) bytes"),
    "weight_bytes": re.compile(r"^Total Weights Memory: (\d+) bytes"),
    "scratch_bytes": re.compile(r"^Max Scratch Memory: (\d+) bytes"),
    "original_layers": re.compile(r"^Original: (\d+) layers"),
}

_STUBS = ("", "__myelin_CASK_STUB")


def read_build_log(messages: Iterable[str]) -> Engine:
    """The Engine that `messages` describe, one string a log message; layers are empty when none were printed.

    A figure that TensorRT prints once a profile becomes the largest of them.
    """
    layers: tuple[Layer, ...] = ()
    ports: tuple[Port, ...] = ()
    figures: dict[str, int] = {}
    for message in messages:
        if message.startswith("Layers:"):
            body, _, rest = message.partition("\nI/O Tensors:\n")
            layers = _layers(body)
            ports = tuple(_port(match) for match in _PORT.finditer(rest))
            continue
        for name, pattern in _MEMORY.items():
            match = pattern.match(message)
            if match:
                figures[name] = max(figures.get(name, 0), int(match[1]))
    return Engine(layers=layers, ports=ports, **figures)  # type: ignore[arg-type]


def onnx_nodes(metadata: str) -> tuple[str, ...]:
    """The node names in a layer's metadata, `[ONNX Layer: a]\\x1f[ONNX Layer: b]` -> ("a", "b"), each once."""
    return tuple(dict.fromkeys(_NODE.findall(metadata)))


def dims(text: str) -> tuple[int, ...]:
    """The shape in "1,3,-1" as a tuple; an empty text is a scalar."""
    return tuple(int(size) for size in text.split(",") if size)


def _layers(body: str) -> tuple[Layer, ...]:
    chunks = re.split(r"^Name: (?=.*, LayerType: )", body, flags=re.MULTILINE)[1:]
    matches = [match for chunk in chunks if (match := _LAYER.match(chunk.rstrip("\n")))]
    profile_of: dict[str, int] = {}
    for match in matches:
        marked = _PROFILE.search(match[0])
        if marked:
            profile_of[_group(match["name"])] = int(marked[1])
    return tuple(_layer(match, profile_of.get(_group(match["name"]), 0)) for match in matches)


def _group(layer_name: str) -> str:
    """The compiled subgraph that a layer belongs to, `1` of `relu_myl1_3`: all its layers serve the same profile."""
    match = _GROUP.search(layer_name)
    return match[1] if match else ""


def _layer(match: re.Match[str], profile: int) -> Layer:
    return Layer(
        name=_PROFILE.sub("", match["name"]),
        type=match["type"],
        onnx_nodes=onnx_nodes(match["nodes"]),
        inputs=_tensors(match["inputs"]),
        outputs=_tensors(match["outputs"]),
        constants=_tensors(match["constants"]),
        stream=int(match["stream"]),
        tactic=None if match["tactic"] in _STUBS else match["tactic"],
        profile=profile,
        event=None if match["event"] is None else int(match["event"]),
    )


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            name=_PROFILE.sub("", match["name"]),
            shape=dims(match["shape"]),
            dtype=DTYPES.get(match["dtype"], match["dtype"]),
            format=_format(match["format"]),
        )
        for match in _TENSOR.finditer(text)
    )


def _format(text: str) -> str:
    """The short name in "(NHWC) Channel major format"."""
    match = re.match(r"\((.*?)\)", text)
    return match[1] if match else text


def _port(match: re.Match[str]) -> Port:
    ranges = _RANGE.findall(match["rest"])
    return Port(
        name=match["name"],
        mode=match["mode"],
        dtype=DTYPES.get(match["dtype"], match["dtype"]),
        shape=dims(match["shape"]),
        profiles=tuple((dims(low), dims(opt), dims(high)) for low, opt, high in ranges),
    )


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
        return Engine(layers=tuple(map(_layer_inspector, layers)), ports=_ports(content, layers))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise AssetError(
            f"This inspector JSON has a part of another form than TensorRT 8, 10 and 11 write ({error}).",
            fix="export it again; " + _MISSING_DETAIL,
        ) from error


def _layer_inspector(entry: dict[str, Any]) -> Layer:
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
        return tuple(_port_inspector(entry) for entry in content["I/O Tensors"])
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


def _port_inspector(entry: dict[str, Any]) -> Port:
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
