"""Read an ONNX model from a path, bytes or a ModelProto, and say clearly what is wrong with one that cannot be read."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError, EncodeError

from trtlab.errors import Diagnosis, ModelError
from trtlab.messages import diagnose_text

Model: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto | Source"


@dataclass(frozen=True)
class Source:
    """An ONNX model as bytes or as a file, and a hash of its content."""

    content: bytes | None
    digest: bytes
    path: Path | None = None

    @cached_property
    def data(self) -> bytes:
        """The bytes of the ONNX file, read when they are wanted: a cached engine needs only the digest."""
        if self.content is not None:
            return self.content
        assert self.path is not None
        data = self.path.read_bytes()
        if digest_of(data) != self.digest:
            raise ModelError(f"{self.subject} changed while it was read.", fix="try again once it is written.")
        return data

    @cached_property
    def external(self) -> tuple[Path, ...]:
        """The files with its external weights; raises ModelError where one is missing, cut short or elsewhere."""
        if _EXTERNAL not in self.data:  # parsing 100 MB to learn that would cost more than the search
            return ()
        return external_files(parse(self), self.path)

    @property
    def title(self) -> str:
        """How messages call this model."""
        return f"'{self.path.name}'" if self.path else "the model"

    @property
    def subject(self) -> str:
        """The same at the beginning of a sentence."""
        return f"'{self.path.name}'" if self.path else "The model"


def read_source(model: Model) -> Source:
    """`model` as a Source; raises ModelError for a missing, empty or unreadable file.

    A Source is itself: who builds a model several times reads it once.
    """
    if isinstance(model, Source):
        return model
    if isinstance(model, bytes | bytearray | memoryview):
        source = _from_bytes(bytes(model))
    elif isinstance(model, str | os.PathLike):
        source = _from_file(Path(model))
    elif hasattr(model, "SerializeToString"):
        source = _from_bytes(_serialize(model))
    else:
        raise ModelError(
            f"A model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}.",
            fix="export it first, for example with torch.onnx.export(..., dynamo=True).",
        )
    if not source.digest:
        raise ModelError(f"{source.subject} is empty (0 bytes).", fix="export or download it again.")
    return source


def parse(source: Source) -> onnx.ModelProto:
    """The ModelProto in `source`, external weights left where they are; raises ModelError when it is not one."""
    try:
        model = onnx.load_model_from_string(source.data)
        _check_text(model)
    except (DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{source.subject} is not an ONNX model: {_looks_like(source.data)}.", fix=_EXPORT) from error
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise ModelError(f"{source.subject} holds no graph: {_looks_like(source.data)}.", fix=_EXPORT)
    return model


def _check_text(message: Any) -> None:
    """Raise UnicodeDecodeError when a name in the model is not UTF-8; protobuf hands such a text out as bytes."""
    for field, content in message.ListFields():
        for part in content if field.is_repeated else (content,):
            if field.type == field.TYPE_STRING and isinstance(part, bytes):
                part.decode()
            elif field.type == field.TYPE_MESSAGE:
                if part.DESCRIPTOR.name != "TensorProto":
                    _check_text(part)
                elif isinstance(part.name, bytes):
                    part.name.decode()


def read_model(model: Model) -> onnx.ModelProto:
    """`model` as a ModelProto, its functions inlined so that every node is one that TensorRT sees."""
    return inlined(parse(read_source(model)))


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its model-local functions replaced by their nodes; the same object when it has none."""
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:  # the inliner has no exception of its own
        takes = {(function.domain, function.name): len(function.input) for function in model.functions}
        wrong = [node for node in model.graph.node if len(node.input) > takes.get((node.domain, node.op_type), 2**31)]
        where = f", at node '{wrong[0].name}' ({wrong[0].op_type})" if wrong else ""
        reason = " ".join(str(error).split()).rstrip(".")
        raise ModelError(
            f"The functions inside the model cannot be put in place of their calls{where}: {reason}.",
            fix="export the model again, without functions of its own.",
        ) from error


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` for looking at its structure: weights that are large or in another file lose their values."""
    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    own, graph = copy.graph, model.graph
    own.name = graph.name
    own.node.extend(graph.node)
    own.input.extend(graph.input)
    own.output.extend(graph.output)
    own.value_info.extend(graph.value_info)
    own.sparse_initializer.extend(graph.sparse_initializer)
    for tensor in graph.initializer:
        kept = own.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        if (weight_bytes(tensor) or 0) <= _SMALL_BYTES:  # ByteSize() would serialize it
            kept.CopyFrom(tensor)
    for tensor in tensors(copy):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
    return copy


def tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every TensorProto in a model, graph or node, wherever it is (attributes, branches, functions, sparse tensors)."""
    for field, content in message.ListFields():
        if field.type != field.TYPE_MESSAGE or field.name in _NO_TENSORS:
            continue
        for part in content if field.is_repeated else (content,):
            if part.DESCRIPTOR.name == "TensorProto":
                yield part
            else:
                yield from tensors(part)


def has_values(tensor: onnx.TensorProto) -> bool:
    """False for a tensor that `without_weights` has emptied."""
    return any(field.name.endswith("_data") for field, _ in tensor.ListFields())


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """`graph` and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        yield from inner_graphs(node)


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Every graph inside a node: the branches of If, the bodies of Loop and Scan, and the graphs inside those."""
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
            yield from graphs(inner)


_EXTERNAL = b"location"  # a key that no model with external weights is without


_CHUNK = 2**22


_SMALL_BYTES = 2**16


_NO_TENSORS = frozenset({"input", "output", "value_info", "opset_import", "metadata_props", "quantization_annotation"})


_PLANS = (b"ftrt", b"vtrt")  # how plans of TensorRT and of TensorRT-RTX begin


_EXPORT = "pass the file that torch.onnx.export or onnx.save wrote, whole."


def _from_bytes(data: bytes) -> Source:
    return Source(data, digest_of(data))


def _from_file(path: Path) -> Source:
    try:
        if path.is_dir():
            raise ModelError(f"'{path}' is a folder.", fix="pass the .onnx file inside it.")
        return Source(None, digest_of(path), path.absolute())
    except FileNotFoundError as error:
        beside = sorted(file.name for file in path.parent.glob("*.onnx"))[:5] if path.parent.is_dir() else []
        hint = f"the folder holds {', '.join(beside)}." if beside else "check the path; it is relative to os.getcwd()."
        raise ModelError(f"There is no file '{path}'.", fix=hint) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"'{path}' cannot be read ({reason}).", fix="check the path and its permissions.") from error


def digest_of(content: bytes | Path) -> bytes:
    """The SHA-256 of the SHA-256 of every 4 MiB of a file or of bytes, on two cores; b"" when there are none."""

    def part(start: int) -> bytes:
        if isinstance(content, bytes):
            return hashlib.sha256(memoryview(content)[start : start + _CHUNK]).digest()
        with content.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(_CHUNK)).digest()

    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(part, range(0, size, _CHUNK)))
    return hashlib.sha256(b"".join(parts)).digest() if parts else b""


def _serialize(model: Any) -> bytes:
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise ModelError(
            "The model is larger than the 2 GB that one protobuf message can hold.",
            fix="save it with onnx.save(model, path, save_as_external_data=True) and pass the path.",
        ) from error


def _looks_like(data: bytes) -> str:
    head = data[:512]
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself (run 'git lfs pull')"
    if head.startswith(b"PK\x03\x04"):
        return "it is a zip archive, perhaps a PyTorch checkpoint"
    if head[:4] in _PLANS:
        return "it is a TensorRT engine, which only a GPU can read (give the ONNX file it was built from)"
    if head[4:8] == b"TFL3":
        return "it is a TensorFlow Lite model"
    try:
        if head.decode().isprintable() or b"\n" in head:
            return "it is text"
    except UnicodeDecodeError:
        pass
    return f"its {len(data):,} bytes are cut short or damaged"


def read_whole(model: Model) -> onnx.ModelProto:
    """`model` with its functions inlined and its external weights inside; a ModelProto that is whole stays as it is.

    Raises ModelError where one cannot be read, and where all of it is more than the 2 GiB of one message.
    """
    if isinstance(model, onnx.ModelProto) and not model.functions and not _has_external(model):
        _check_size(model.ByteSize())
        return model
    source = read_source(model)
    proto = inlined(parse(source))
    if source.external:
        assert source.path is not None
        _check_size(sum(path.stat().st_size for path in source.external))
        onnx.load_external_data_for_model(proto, str(source.path.parent))
    _check_size(proto.ByteSize())
    return proto


def _has_external(model: onnx.ModelProto) -> bool:
    return any(tensor.data_location == tensor.EXTERNAL for tensor in tensors(model))


def _check_size(size: int) -> None:
    if size >= 2**31:
        raise ModelError(
            f"The model has {size / 2**30:.1f} GiB, and what is computed with it here must fit one message of 2 GiB.",
            fix="take a part of it: 'polygraphy surgeon extract' cuts one out.",
        )


def external_files(model: onnx.ModelProto, path: Path | None) -> tuple[Path, ...]:
    """The files that hold the external weights of `model`, read from `path`; () when there are none.

    Raises ModelError when one is missing, too short, or not inside the model's folder (absolute, `..` or a link out).
    """
    files: dict[str, Path] = {}
    for tensor in tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        facts = {entry.key: entry.value for entry in tensor.external_data}
        location = facts.get("location", "")
        if path is None:
            raise ModelError(
                f"The weights of '{tensor.name}' are in another file ('{location}'), which bytes cannot point to.",
                fix="pass the path of the .onnx file, or load it with onnx.load(path), which reads the weights too.",
            )
        if location not in files:
            files[location] = _inside(location, path, tensor.name)
        _check_length(facts, files[location], tensor)
    return tuple(files[location] for location in sorted(files))


def _inside(location: str, path: Path, tensor: str) -> Path:
    folder = path.parent.resolve()
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute()
    file = (folder / location).resolve()
    if not location or absolute or not file.is_relative_to(folder):
        raise ModelError(
            f"The weights of '{tensor}' point outside the folder of '{path.name}' (to '{location}').",
            fix="put the weight file beside the model and save it with a relative location.",
        )
    if not file.is_file():
        raise ModelError(
            f"The weights of '{tensor}' are in '{location}', which is not beside '{path.name}'.",
            fix="copy that file into the model's folder.",
        )
    return file


def _check_length(facts: dict[str, str], file: Path, tensor: onnx.TensorProto) -> None:
    size, needed = file.stat().st_size, weight_bytes(tensor) or 0
    try:
        start = int(facts.get("offset") or 0)
        length = int(facts.get("length") or needed)
    except ValueError:
        start = length = -1
    if start < 0 or length < needed:
        raise ModelError(
            f"The weights of '{tensor.name}' are said to be at offset {facts.get('offset')}, length "
            f"{facts.get('length')} of '{file.name}', and its shape {list(tensor.dims)} asks for {needed:,} bytes.",
            fix="export the model again.",
        )
    if start + length > size:
        raise ModelError(
            f"The weights of '{tensor.name}' end at byte {start + length:,} of '{file.name}', which has {size:,}: "
            "it is cut short.",
            fix="copy or export the weight file again.",
        )


def check_model(model: onnx.ModelProto, source: Source) -> None:
    """Raise ModelError, naming the node or tensor, when ONNX's checker or a rule of TensorRT refuses `model`.

    Its external weights are checked first: they must be there, long enough and in the model's folder.
    """
    external_files(model, source.path)
    if not model.graph.output:
        raise ModelError(
            f"{source.subject} has no outputs, so nothing would be computed.", fix="mark at least one tensor as output."
        )
    _check_ports(model, source)
    _check_weights(model, source)
    light = without_weights(model)
    for tensor in tensors(light):
        if not has_values(tensor):
            tensor.dims[:] = [0]  # the checker wants values for every size but this
    # The checker wants a shape on outputs too; TensorRT infers it, so a missing one is no fault of the model.
    for value in light.graph.output:
        value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(light)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        where, reason = _checker_words(str(error))
        message = f"{source.subject} is not valid ONNX{where}: {reason}."
        known = diagnose_text(reason)
        raise ModelError(
            message,
            diagnosis=Diagnosis(known.cause, reason, known.fix, known.reference)
            if known.fix
            else Diagnosis(message, fix="'polygraphy check lint' gives the full list; export the model again."),
        ) from error


def _check_ports(model: onnx.ModelProto, source: Source) -> None:
    for role, values in (("Input", model.graph.input), ("Output", model.graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value") or "tensor_type"
            if kind != "tensor_type":
                raise ModelError(
                    f"{role} '{value.name}' of {source.title} is a {kind.removesuffix('_type').replace('_', ' ')}, "
                    "and TensorRT takes only tensors.",
                    fix="change the model so that it takes and returns plain tensors.",
                )
            _check_type(f"{role} '{value.name}' of {source.title}", value.type.tensor_type.elem_type)
            huge = [size.dim_value for size in value.type.tensor_type.shape.dim if size.dim_value >= 2**31]
            if huge:
                raise ModelError(
                    f"{role} '{value.name}' of {source.title} has a dimension of {huge[0]:,}, and TensorRT counts to "
                    f"{2**31 - 1:,}.",
                    fix="declare the size that will really come, or a name such as 'N' for one that may vary.",
                )
            if role == "Input" and value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
                raise ModelError(
                    f"Input '{value.name}' of {source.title} has no shape, not even a rank.",
                    fix="declare its shape, with a name such as 'N' for each dimension that may vary.",
                )


def _check_type(what: str, kind: int) -> None:
    if kind == onnx.TensorProto.STRING:
        raise ModelError(
            f"{what} holds strings, which TensorRT has no type for.",
            fix="move text handling (tokenizer, vocabulary) out of the model and pass numbers.",
        )
    known = {number: name for name, number in onnx.TensorProto.DataType.items()}
    if known.get(kind) in _NOT_IN_TENSORRT or kind not in known:
        name = known.get(kind, f"number {kind}")
        raise ModelError(
            f"{what} has the element type {name}, which TensorRT does not know.",
            fix="use float32, float16, bfloat16, int64, int32, int8, uint8 or bool.",
        )


# What its ONNX parser refuses for inputs.
_NOT_IN_TENSORRT = frozenset(
    {
        "UNDEFINED", "INT16", "UINT16", "UINT32", "UINT64", "COMPLEX64", "COMPLEX128", "UINT4", "UINT2", "INT2",
        "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT6E2M3", "FLOAT6E3M2",
    }
)  # fmt: skip


def _check_weights(model: onnx.ModelProto, source: Source) -> None:
    """Raise ModelError for a tensor whose raw bytes are not as many as its shape and type ask for."""
    for tensor in tensors(model):
        size = weight_bytes(tensor)
        if tensor.HasField("raw_data") and size is not None and len(tensor.raw_data) != size:
            raise ModelError(
                f"The weights of '{tensor.name}' in {source.title} are {len(tensor.raw_data):,} bytes, and its shape "
                f"{list(tensor.dims)} asks for {size:,}.",
                fix="export the model again.",
            )


def weight_bytes(tensor: onnx.TensorProto) -> int | None:
    """How many bytes the values of `tensor` take, packed as ONNX packs them; None for a type without a fixed size."""
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, TypeError, ValueError):
        return None
    bits = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "float4_e2m1fn": 4}.get(dtype.name, dtype.itemsize * 8)
    if tensor.data_type == onnx.TensorProto.STRING or min(tensor.dims, default=0) < 0:
        return None
    return (math.prod(tensor.dims) * bits + 7) // 8


def _checker_words(message: str) -> tuple[str, str]:
    """The place (" at node 'conv1' (Conv)", or "") and the reason, in one line, from what ONNX's checker prints."""
    reason, _, context = message.partition("==> Context")
    reason = re.sub(r"^\[\w+\]\s*", "", " ".join(reason.split())).rstrip(".")
    named = re.search(r"Name: (.*) OpType: (\S+)", context) or re.search(r"\bname: (.*?) OpType: (\S+)", reason)
    where = f" at node '{named[1]}' ({named[2]})" if named and named[1] else ""
    return where, reason or "ONNX's checker gives no reason"
