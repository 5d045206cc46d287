"""From TensorRT's own verbose build log, or the JSON of its IEngineInspector, to an Engine.

With `ProfilingVerbosity.DETAILED` one message of the log starts with `Layers:` and holds one entry a kernel, in the
vocabulary of the inspector; the memory figures are messages of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trtlab.engine import BITS, Engine, Layer, Port, Tensor
from trtlab.errors import AssetError

# The spellings of element types in TensorRT's log and inspector that are not this course's.
_TYPES = {"FLOAT": "FP32", "HALF": "FP16", "BFLOAT16": "BF16", "FP4E2M1": "FP4"}
_TYPE = re.compile(rf"\b({'|'.join((*BITS, *_TYPES))})\b", re.IGNORECASE)

# One entry of the log, with the inspector's names for its parts.
_LAYER = re.compile(
    r"(?P<Name>.*?), LayerType: (?P<LayerType>\w*), Inputs: \[(?P<Inputs>.*?)\], Constants: \[(?P<Constants>.*?)\], "
    r"Outputs: \[(?P<Outputs>.*?)\], TacticName: (?P<TacticName>.*?), StreamId: (?P<StreamId>-?\d+)"
    r"(?:, EventId: (?P<EventId>-?\d+))?, Metadata: (?P<Metadata>.*)",
    re.DOTALL,
)
_TENSOR = re.compile(
    r"\{ Name: (?P<Name>.*?), Dimensions: \[(?P<Dimensions>[-\d,]*)\], Strides: \[[^\]]*\], StrideOrder: \[[^\]]*\], "
    r"Datatype: (?P<Datatype>\w+), Format: (?P<Format>.*?) \}",
    re.DOTALL,
)
_PORT = re.compile(
    r"^ Name: (?P<Name>.*?), IOMode: (?P<IOMode>\w+), DataType: (?P<DataType>\w+), "
    r"Dimensions: \[(?P<Dimensions>[-\d,]*)\](?P<ProfileInfo>.*)",
    re.MULTILINE,
)
_RANGE = re.compile(", ".join(rf"{end}Shape: \[(?P<{end}Shape>.*?)\]" for end in ("Min", "Opt", "Max")))
# A node in a layer's metadata, `[ONNX Layer: a]\x1f[ONNX Layer: b]`.
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]|\[ONNX Layer: |\s*$)", re.DOTALL)
_PROFILE = re.compile(r" \[profile (\d+)\]")
_GROUP = re.compile(r"_myl(\d+)_\d+$")  # the compiled subgraph that a layer belongs to: 1 of relu_myl1_3
_FIGURES = {
    "Total Activation Memory": "activation_bytes", "Total Weights Memory": "weight_bytes",
    "Max Scratch Memory": "scratch_bytes", "Original": "original_layers",
}  # fmt: skip
_FIGURE = re.compile(rf"({'|'.join(_FIGURES)}): (\d+) ")
_STUBS = (None, "", "__myelin_CASK_STUB")
_DETAILED = "build the engine with ProfilingVerbosity.DETAILED and ask for LayerInformationFormat.JSON."


def read_engine(messages: Sequence[Sequence[str]], facts: Mapping[str, Any]) -> Engine:
    """The Engine of a build from its (severity, message) pairs and what the compiler process told beside them."""
    engine = read_build_log(message for _, message in messages)
    if "inspector" in facts:  # full TensorRT does not print its layers
        described = read_inspector(facts["inspector"])
        engine = replace(engine, layers=described.layers, ports=described.ports)
    return replace(engine, network_layers=facts["network_layers"])


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
            layers, ports = _printed_layers(body), tuple(_port(_parts(match)) for match in _PORT.finditer(rest))
        elif match := _FIGURE.match(message):
            name = _FIGURES[match[1]]
            figures[name] = max(figures.get(name, 0), int(match[2]))
    return Engine(layers=layers, ports=ports, **figures)  # type: ignore[arg-type]


def _printed_layers(body: str) -> tuple[Layer, ...]:
    chunks = re.split(r"^Name: (?=.*, LayerType: )", body, flags=re.MULTILINE)[1:]
    matches = [match for chunk in chunks if (match := _LAYER.match(chunk.rstrip("\n")))]
    groups = [found[1] if (found := _GROUP.search(match["Name"])) else "" for match in matches]
    # All layers of a compiled subgraph serve the same profile, and some of them say which.
    said = zip(groups, (_PROFILE.search(match[0]) for match in matches), strict=True)
    profiles = {group: int(found[1]) for group, found in said if found}
    layers = (_layer(_parts(match)) for match in matches)
    return tuple(replace(one, profile=profiles.get(group, 0)) for one, group in zip(layers, groups, strict=True))


def _parts(match: re.Match[str]) -> dict[str, Any]:
    """An entry of the log as the inspector would write it."""
    entry: dict[str, Any] = match.groupdict()
    for name in {"Inputs", "Constants", "Outputs", "ProfileInfo"} & entry.keys():
        pattern = _RANGE if name == "ProfileInfo" else _TENSOR
        entry[name] = [found.groupdict() for found in pattern.finditer(entry[name])]
    return entry


def read_inspector(text: str) -> Engine:
    """The Engine in `text`; raises AssetError when it is not the inspector's JSON or holds layer names only."""
    try:
        content = json.loads(text)
        layers = content["Layers"]
        if any(isinstance(layer, str) for layer in layers):
            raise AssetError("This inspector JSON holds only the names of the layers.", fix=_DETAILED)
        return Engine(layers=tuple(map(_layer, layers)), ports=_ports(content, layers))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        message = f"This is not the JSON of an engine inspector, as TensorRT 8, 10 and 11 write it ({reason})."
        fix = "pass what IEngineInspector.get_engine_information or trtexec --exportLayerInfo wrote; "
        raise AssetError(message, fix=fix + _DETAILED) from error


def _layer(entry: dict[str, Any]) -> Layer:
    name, profile = _split_profile(entry)
    metadata, tactic, event = entry.get("Metadata"), entry.get("TacticName"), entry.get("EventId")
    return Layer(
        name=name,
        type=str(entry.get("LayerType", "")),
        onnx_nodes=nodes_in_name(name) if metadata is None else tuple(dict.fromkeys(_NODE.findall(str(metadata)))),
        inputs=tuple(map(_tensor, entry.get("Inputs") or ())),
        outputs=tuple(map(_tensor, entry.get("Outputs") or ())),
        constants=(*map(_tensor, entry.get("Constants") or ()), *_weights(entry)),
        stream=int(entry.get("StreamId", 0)),
        tactic=None if tactic in _STUBS else tactic,
        profile=profile,
        event=None if event is None else int(event),
    )


def nodes_in_name(name: str) -> tuple[str, ...]:
    """TensorRT 8 has no metadata: its layer names say it, "Conv_0 + Relu_1" and "PWN(PWN(Sigmoid_3), Mul_4)"."""
    if name.startswith(("Reformatting CopyNode", "reshape_", "squeeze_", "unsqueeze_", "{ForeignNode")):
        return ()
    parts = (re.sub(r"PWN\(|\)", "", part) for part in re.split(r" \+ | \|\| ", name))
    return tuple(dict.fromkeys(node.strip() for part in parts for node in part.split(",")))


def _tensor(entry: dict[str, Any]) -> Tensor:
    """A tensor; of a format such as "(NHWC) Channel major" only the short name."""
    layout = str(entry.get("Format/Datatype") or entry.get("Format") or "")
    dtype = _dtype(entry.get("Datatype"), layout)
    short = re.match(r"\((.*?)\)", layout)
    return Tensor(_split_profile(entry)[0], _shape(entry.get("Dimensions")), dtype, short[1] if short else layout)


def _dtype(named: Any, layout: str = "") -> str:
    """The element type that a text names, or else the layout of a tensor; the text itself where it is not known."""
    found = _TYPE.search(str(named)) or _TYPE.search(layout)
    return _TYPES.get(found[1].upper(), found[1].upper()) if found else str(named or "")


def _shape(given: Any) -> tuple[int, ...]:
    """The shape in "1,3,-1" or [1, 3, -1]; nothing is a scalar."""
    return tuple(map(int, re.findall(r"-?\d+", given) if isinstance(given, str) else given or ()))


def _weights(entry: dict[str, Any]) -> Iterable[Tensor]:
    """TensorRT 8 gives a count of weights in place of a list of constants."""
    for key in ("Weights", "Bias"):
        value = entry.get(key)
        if isinstance(value, dict) and value.get("Count"):
            yield Tensor(key.lower(), (int(value["Count"]),), _dtype(value.get("Type")))


def _ports(content: dict[str, Any], layers: list[dict[str, Any]]) -> tuple[Port, ...]:
    if "I/O Tensors" in content:
        return tuple(map(_port, content["I/O Tensors"]))
    read = {tensor.get("Name"): tensor for layer in layers for tensor in layer.get("Inputs") or ()}
    written = {tensor.get("Name"): tensor for layer in layers for tensor in layer.get("Outputs") or ()}
    first = [name for name in content.get("Bindings", ()) if not _PROFILE.search(name)]
    tensors = [_tensor(written.get(name) or read.get(name) or {"Name": name}) for name in first]
    return tuple(Port(one.name, "Output" if one.name in written else "Input", one.dtype, one.shape) for one in tensors)


def _port(entry: dict[str, Any]) -> Port:
    dtype = _dtype(entry.get("DataType") or entry.get("Datatype"))
    ranges = [item for item in entry.get("ProfileInfo") or () if isinstance(item, dict) and "MinShape" in item]
    profiles = tuple(tuple(_shape(item[key]) for key in ("MinShape", "OptShape", "MaxShape")) for item in ranges)
    mode, shape = str(entry.get("IOMode", "Input")), _shape(entry.get("Dimensions"))
    return Port(str(entry.get("Name", "")), mode, dtype, shape, profiles)


def _split_profile(entry: dict[str, Any]) -> tuple[str, int]:
    """TensorRT marks the copies of later profiles: "conv1 [profile 1]" -> ("conv1", 1)."""
    name = str(entry.get("Name", ""))
    match = _PROFILE.search(name)
    return _PROFILE.sub("", name), int(match[1]) if match else 0
