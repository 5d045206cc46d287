"""Read the compiled engine out of TensorRT's own verbose build log.

With `ProfilingVerbosity.DETAILED` one message starts with `Layers:` and holds one entry a kernel, in the vocabulary of
`IEngineInspector`; the memory figures are messages of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from trtlab.engine import Engine, Layer, Port, Tensor

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
