"""What is this ONNX model, and is it one? Read from a path, bytes or a ModelProto, and what is wrong said clearly."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError, EncodeError
from onnx import external_data_helper as external_data

from trtlab.errors import Diagnosis, ModelError
from trtlab.logs import diagnose_text
from trtlab.messages import plain

Model: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto | Source"
_EXPORT = "pass the file that torch.onnx.export or onnx.save wrote, whole."

# How other files begin, and what they are.
_STARTS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself (run 'git lfs pull')",
    b"PK\x03\x04": "is a zip archive, perhaps a PyTorch checkpoint",
    b"ftrt": "is a TensorRT engine (give the ONNX file it was built from)",
    b"vtrt": "is a TensorRT-RTX engine (give the ONNX file it was built from)",
    b"\x1c\0\0\0TFL3": "is a TensorFlow Lite model",
}

# The element types that TensorRT's ONNX parser takes for inputs.
_TYPES = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT64", "INT32", "INT8", "UINT8", "BOOL", "INT4", "FLOAT8E4M3FN",
          "FLOAT8E8M0", "FLOAT4E2M1")  # fmt: skip


@dataclass(frozen=True)
class Source:
    """The bytes of an ONNX file, and where it lies."""

    content: bytes | None  # None: in the file
    path: Path | None = None

    @cached_property
    def data(self) -> bytes:
        """The bytes, read when they are asked for first: for an engine from the cache their digest is enough."""
        if self.content is not None or self.path is None:
            return self.content or b""
        with _opened(self.path) as file:
            return file.read()

    @cached_property
    def digest(self) -> bytes:
        """The SHA-256 of the bytes."""
        if self.content is not None or self.path is None:
            return hashlib.sha256(self.data).digest()
        return digest_of(self.path)

    @cached_property
    def external(self) -> tuple[Path, ...]:
        """The files with its external weights; raises ModelError where one is missing, cut short or elsewhere."""
        # Every model with external weights holds this key; to parse 100 MB to learn that would cost more.
        return external_files(parse(self), self.path) if b"location" in self.data else ()

    @property
    def title(self) -> str:
        """How messages call this model."""
        return f"'{self.path.name}'" if self.path else "the model"


def read_source(model: Model) -> Source:
    """`model` as a Source; raises ModelError for a missing or unreadable file. A Source is itself."""
    if isinstance(model, Source):
        return model
    if isinstance(model, onnx.ModelProto):
        try:
            return Source(model.SerializeToString(deterministic=True))
        except (EncodeError, ValueError) as error:
            text = "The model is larger than the 2 GB that one protobuf message can hold."
            fix = "save it with onnx.save(model, path, save_as_external_data=True) and pass the path."
            raise ModelError(text, fix=fix) from error
    if isinstance(model, bytes | bytearray | memoryview):
        return Source(bytes(model))
    if isinstance(model, str | os.PathLike):
        _opened(Path(model)).close()
        return Source(None, Path(model).absolute())
    fix = "export it first, for example with torch.onnx.export(..., dynamo=True)."
    raise ModelError(f"A model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}.", fix=fix)


def _opened(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except IsADirectoryError as error:
        raise ModelError(f"'{path}' is a folder.", fix="pass the .onnx file inside it.") from error
    except FileNotFoundError as error:
        beside = sorted(file.name for file in path.parent.glob("*.onnx"))[:5]
        hint = f"the folder holds {', '.join(beside)}." if beside else "check the path; it is relative to os.getcwd()."
        raise ModelError(f"There is no file '{path}'.", fix=hint) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"'{path}' cannot be read ({reason}).", fix="check the path and its permissions.") from error


def digest_of(path: Path) -> bytes:
    """The SHA-256 of a file."""
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


def parse(source: Source) -> onnx.ModelProto:
    """The ModelProto in `source`, external weights left where they are; raises ModelError when it is not one."""
    try:
        model = onnx.load_model_from_string(source.data)
    except DecodeError as error:
        raise ModelError(f"This is no ONNX model: {source.title} {_looks_like(source.data)}.", fix=_EXPORT) from error
    if not _is_sound(model):
        what = f"There is no graph that can be read: {source.title} {_looks_like(source.data)}."
        raise ModelError(what, fix=_EXPORT)
    return model


def _is_sound(model: onnx.ModelProto) -> bool:
    """It has a graph, and its texts are UTF-8: protobuf hands out others as bytes."""
    texts = (text for message in _messages(model) for text in _texts(message))
    return bool(model.graph.node or model.graph.output) and not any(isinstance(text, bytes) for text in texts)


def _texts(message: Any) -> list[str | bytes]:
    """The names and other texts of a message itself."""
    if message.DESCRIPTOR.name == "TensorProto":
        return [message.name]
    texts = [(field, text) for field, text in message.ListFields() if field.type == field.TYPE_STRING]
    return [part for field, text in texts for part in (text if field.is_repeated else (text,))]


def _looks_like(data: bytes) -> str:
    if not data:
        return "is empty (0 bytes)"
    text = data[:512].isascii() and (data[:512].decode().isprintable() or b"\n" in data[:512])
    damaged = "is text" if text else f"has {len(data):,} bytes, which are cut short or damaged"
    return next((what for start, what in _STARTS.items() if data.startswith(start)), damaged)


def read_model(model: Model) -> onnx.ModelProto:
    """`model` as a ModelProto, its functions inlined so that every node is one that TensorRT sees.

    A ModelProto without functions is itself: who changes what this returns, copies it first.
    """
    if isinstance(model, onnx.ModelProto) and _is_sound(model):
        return inlined(model)
    return inlined(parse(read_source(model)))


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its model-local functions replaced by their nodes; the same object when it has none."""
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:  # the inliner has no exception of its own, and does not name the call
        takes = {(function.domain, function.name): len(function.input) for function in model.functions}
        wrong = [node for node in model.graph.node if len(node.input) > takes.get((node.domain, node.op_type), 2**31)]
        where = f", at node '{wrong[0].name}' ({wrong[0].op_type})" if wrong else ""
        message = f"The functions inside the model cannot be put in place of their calls{where}: {plain(str(error))}."
        raise ModelError(message, fix="export the model again, without functions of its own.") from error


def read_whole(model: Model) -> onnx.ModelProto:
    """`model` with its functions inlined and its external weights inside; a ModelProto that is whole stays as it is.

    Raises ModelError where one cannot be read, and where all of it is more than the 2 GiB of one message.
    """
    source = model if isinstance(model, onnx.ModelProto) else read_source(model)
    path, proto = getattr(source, "path", None), read_model(source)
    files = external_files(proto, path)
    size = sum(file.stat().st_size for file in files) + proto.ByteSize()
    if size >= 2**31:
        text = f"The model has {size / 2**30:.1f} GiB, and what is computed with it here must fit one message of 2 GiB."
        raise ModelError(text, fix="take a part of it: 'polygraphy surgeon extract' cuts one out.")
    if files and path:
        onnx.load_external_data_for_model(proto, str(path.parent))
    return proto


def graph_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs of `graph` that are no weights."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` for looking at its structure: weights that are large or in another file lose their values."""
    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    copy.graph.name = model.graph.name
    for part in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(copy.graph, part).extend(getattr(model.graph, part))
    for tensor in model.graph.initializer:
        kept = copy.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        if (weight_bytes(tensor) or 0) <= 2**16:  # ByteSize() would serialize it
            kept.CopyFrom(tensor)
    for tensor in filter(external_data.uses_external_data, tensors(copy)):
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
    return copy


def has_values(tensor: onnx.TensorProto) -> bool:
    """False for a tensor that `without_weights` has emptied."""
    return any(field.name.endswith("_data") for field, _ in tensor.ListFields())


def _messages(message: Any, without: Collection[str] = ()) -> Iterator[Any]:
    """`message` and those inside it, wherever they are, but for some kinds; without a tensor's parts, for its size."""
    yield message
    for field, content in message.ListFields() if message.DESCRIPTOR.name != "TensorProto" else ():
        if field.type == field.TYPE_MESSAGE and field.message_type.name not in without:
            for part in content if field.is_repeated else (content,):
                yield from _messages(part, without)


def tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every TensorProto in a model, graph or node, wherever it is (attributes, branches, functions, sparse tensors)."""
    parts = _messages(message, ("ValueInfoProto", "StringStringEntryProto"))  # which are many, and hold none
    return (part for part in parts if part.DESCRIPTOR.name == "TensorProto")


def graphs(message: Any) -> list[onnx.GraphProto]:
    """Every graph in a graph (itself first) or a node: branches of If, bodies of Loop and Scan, and those in them."""
    return [part for part in _messages(message) if part.DESCRIPTOR.name == "GraphProto"]


def node_names(graph: onnx.GraphProto) -> list[str]:
    """A unique name for each node of `graph`: its own, `Relu_3` for an unnamed one, `name#2` for a second one."""
    own, names = {node.name for node in graph.node}, dict[str, None]()
    for index, node in enumerate(graph.node):
        base, count = node.name or f"{node.op_type}_{index}", 1
        name = base
        while name in names or (name != node.name and name in own):
            count += 1
            name = f"{base}#{count}"
        names[name] = None
    return list(names)


def external_files(model: onnx.ModelProto, path: Path | None) -> tuple[Path, ...]:
    """The files that hold the external weights of `model`, read from `path`; () when there are none.

    Raises ModelError when ONNX would not load one: it is missing, cut short, or not plainly inside the model's folder.
    """
    elsewhere = filter(external_data.uses_external_data, tensors(model))
    return tuple(sorted({_weight_file(tensor, path) for tensor in elsewhere}))


def _weight_file(tensor: onnx.TensorProto, path: Path | None) -> Path:
    location = next((one.value for one in tensor.external_data if one.key == "location"), "")
    if path is None:
        message = f"The weights of '{tensor.name}' are in another file ('{location}'), which bytes cannot point to."
        fix = "pass the path of the .onnx file, or load it with onnx.load(path), which reads the weights too."
        raise ModelError(message, fix=fix)
    try:
        info, needed = external_data.ExternalDataInfo(tensor), weight_bytes(tensor) or 0
        length = needed if info.length is None else info.length
        if length < needed:  # which ONNX would load
            raise ValueError(f"{length:,} bytes are said to be there, and {list(tensor.dims)} asks for {needed:,}")
        probe = onnx.TensorProto(name=tensor.name, raw_data=b"")
        external_data.set_external_data(probe, location, (info.offset or 0) + length, 0)
        # No bytes of it: ONNX looks at the file, and no more.
        external_data.load_external_data_for_tensor(probe, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        said = "it is cut short" if "exceeds file size" in str(error) else plain(str(error).rpartition(", but ")[2])
        reason = said if (path.parent / location).exists() else "there is no such file"
        message = f"The weights of '{tensor.name}' cannot be read from '{location}' beside '{path.name}': {reason}."
        fix = "put the weight file beside the model, whole and no link, or export the model again."
        raise ModelError(message, fix=fix) from error
    return path.parent / location


def weight_bytes(tensor: onnx.TensorProto) -> int | None:
    """How many bytes the values of `tensor` take, packed as ONNX packs them; None for a type without a fixed size."""
    known = onnx.helper.get_all_tensor_dtypes() - {onnx.TensorProto.STRING}
    if tensor.data_type not in known or min(tensor.dims, default=0) < 0:
        return None
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    bits = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "float4_e2m1fn": 4}.get(dtype.name, dtype.itemsize * 8)
    return (math.prod(tensor.dims) * bits + 7) // 8


def check_model(model: onnx.ModelProto, source: Source) -> None:
    """Raise ModelError, naming the node or tensor, when ONNX's checker or a rule of TensorRT refuses `model`."""
    external_files(model, source.path)
    if not model.graph.output:
        what = f"There are no outputs in {source.title}: nothing would be computed."
        raise ModelError(what, fix="mark one as output.")
    for role, ports in (("Input", model.graph.input), ("Output", model.graph.output)):
        for value in ports:
            _check_port(f"{role} '{value.name}' of {source.title}", value, needs_rank=role == "Input")
    for tensor in tensors(model):
        size, given = weight_bytes(tensor), len(tensor.raw_data)
        if tensor.HasField("raw_data") and size is not None and given != size:
            have = f"The weights of '{tensor.name}' in {source.title} are {given:,} bytes"
            raise ModelError(f"{have}, and its shape {list(tensor.dims)} asks for {size:,}.", fix=_EXPORT)
    _check_onnx(model, source)


def _check_port(what: str, value: onnx.ValueInfoProto, *, needs_rank: bool) -> None:
    """Raise ModelError for an input or output that TensorRT refuses without saying why, or takes for another."""
    kind, tensor = value.type.WhichOneof("value") or "tensor_type", value.type.tensor_type
    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    held = names.get(tensor.elem_type, f"number {tensor.elem_type}") if kind == "tensor_type" else kind
    if held not in _TYPES:
        fix = f"pass tensors of {', '.join(_TYPES)}; what handles text (tokenizer, vocabulary) belongs outside."
        raise ModelError(f"{what} has the type {held}, which TensorRT does not know.", fix=fix)
    if needs_rank and not tensor.HasField("shape"):
        fix = "declare its shape, with a name such as 'N' for each dimension that may vary."
        raise ModelError(f"{what} has no shape, not even a rank.", fix=fix)


def _check_onnx(model: onnx.ModelProto, source: Source) -> None:
    light = without_weights(model)
    for tensor in (tensor for tensor in tensors(light) if not has_values(tensor)):
        tensor.dims[:] = [0]  # the checker wants values for every size but this
    # The checker wants a shape on outputs too; TensorRT infers it, so a missing one is no fault of the model.
    for value in light.graph.output:
        value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(light)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        reason, _, context = str(error).partition("==> Context")
        reason = plain(reason) or "ONNX's checker gives no reason"
        named = re.search(r"Name: (.*) OpType: (\S+)", context) or re.search(r"\bname: (.*?) OpType: (\S+)", reason)
        where = f" at node '{named[1]}' ({named[2]})" if named and named[1] else ""
        message, known = f"ONNX's checker refuses {source.title}{where}: {reason}.", diagnose_text(reason)
        if not known.fix:
            known = Diagnosis(message, fix="export it again; 'polygraphy check lint' gives the full list.")
        raise ModelError(message, diagnosis=known) from error
