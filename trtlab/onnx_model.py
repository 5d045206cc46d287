"""Read an ONNX model from a path, bytes or a ModelProto, and say clearly what is wrong with one that cannot be read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from trtlab.errors import ModelError

if TYPE_CHECKING:
    import onnx

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
        from trtlab.external_data import external_files

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
    import onnx
    from google.protobuf.message import DecodeError

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
    import onnx.inliner

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
    import onnx

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
        if tensor.ByteSize() <= _SMALL_BYTES:
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
    from google.protobuf.message import EncodeError

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
