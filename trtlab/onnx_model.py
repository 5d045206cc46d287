"""Read an ONNX model from a path, bytes or a ModelProto, and say clearly what is wrong with one that cannot be read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtlab.errors import ModelError

if TYPE_CHECKING:
    import onnx

    Model = str | os.PathLike[str] | bytes | onnx.ModelProto


@dataclass(frozen=True)
class Source:
    """The bytes of an ONNX file, the path they came from, and the files its external weights are in."""

    data: bytes
    path: Path | None = None
    external: tuple[Path, ...] = ()

    @property
    def title(self) -> str:
        """How messages call this model."""
        return f"'{self.path.name}'" if self.path else "the model"


def read_source(model: Model) -> Source:
    """The bytes of `model`; raises ModelError for a missing, empty or unreadable file and for unsafe external data."""
    if isinstance(model, bytes | bytearray | memoryview):
        source = Source(bytes(model))
    elif isinstance(model, str | os.PathLike):
        source = _read_file(Path(model))
    elif hasattr(model, "SerializeToString"):
        source = _serialize(model)
    else:
        raise ModelError(
            f"A model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}.",
            fix="export it first, for example with torch.onnx.export(..., dynamo=True).",
        )
    if not source.data:
        raise ModelError(f"{source.title} is empty (0 bytes).", fix="export or download it again.")
    # Only a model with external weights holds this key; parsing 100 MB to learn that would cost more than the search.
    if b"location" in source.data:
        from trtlab.external_data import external_files

        source = Source(source.data, source.path, external_files(parse(source), source.path))
    return source


def parse(source: Source) -> onnx.ModelProto:
    """The ModelProto in `source`, external weights left where they are; raises ModelError when it is not one."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(source.data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{source.title} is not an ONNX model: {_looks_like(source.data)}.", fix=_EXPORT) from error
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise ModelError(f"{source.title} holds no graph: {_looks_like(source.data)}.", fix=_EXPORT)
    return model


def read_model(model: Model) -> onnx.ModelProto:
    """`model` as a ModelProto, its functions inlined so that every node is one that TensorRT sees."""
    return inlined(parse(read_source(model)))


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its model-local functions replaced by their nodes; the same object when it has none."""
    if not model.functions:
        return model
    import onnx.inliner

    return onnx.inliner.inline_local_functions(model)


def check_model(model: onnx.ModelProto, source: Source) -> None:
    """Raise ModelError, naming the node or tensor, when ONNX's own checker or a rule of TensorRT refuses `model`."""
    import onnx

    from trtlab.diagnose import diagnose_text

    if not model.graph.output:
        raise ModelError(
            f"{source.title} has no outputs, so nothing would be computed.", fix="mark at least one tensor as output."
        )
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            raise ModelError(
                f"Input '{value.name}' of {source.title} holds strings, which TensorRT has no type for.",
                fix="move text handling (tokenizer, vocabulary) out of the model and pass numbers.",
            )
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            raise ModelError(
                f"Input '{value.name}' of {source.title} has no shape, not even a rank.",
                fix="declare its shape, with a name such as 'N' for each dimension that may vary.",
            )
    # The checker wants a shape on outputs too; TensorRT infers it, so a missing one is no fault of the model.
    bare = [value for value in model.graph.output if not value.type.tensor_type.HasField("shape")]
    for value in bare:
        value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(str(source.path) if source.external else model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        where, reason = _checker_words(str(error))
        raise ModelError(
            f"{source.title} is not valid ONNX{where}: {reason}.",
            fix=diagnose_text(reason).fix or "'polygraphy check lint' gives the full list; export the model again.",
        ) from error
    finally:
        for value in bare:
            value.type.tensor_type.ClearField("shape")


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """`graph` and every graph inside its nodes (the branches of If, the body of Loop and Scan)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                yield from graphs(inner)


_EXPORT = "pass the file that torch.onnx.export or onnx.save wrote, whole."


def _read_file(path: Path) -> Source:
    if path.is_dir():
        raise ModelError(f"'{path}' is a folder.", fix="pass the .onnx file inside it.")
    try:
        return Source(path.read_bytes(), path.absolute())
    except FileNotFoundError as error:
        beside = sorted(file.name for file in path.parent.glob("*.onnx"))[:5] if path.parent.is_dir() else []
        hint = f"the folder holds {', '.join(beside)}." if beside else "check the path; it is relative to os.getcwd()."
        raise ModelError(f"There is no file '{path}'.", fix=hint) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"'{path}' cannot be read ({reason}).", fix="check the path and its permissions.") from error


def _serialize(model: Any) -> Source:
    from google.protobuf.message import EncodeError

    try:
        return Source(model.SerializeToString(deterministic=True))
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
    if head[4:8] == b"TFL3":
        return "it is a TensorFlow Lite model"
    try:
        if head.decode().isprintable() or b"\n" in head:
            return "it is text"
    except UnicodeDecodeError:
        pass
    return f"its {len(data):,} bytes are cut short or damaged"


def _checker_words(message: str) -> tuple[str, str]:
    """The place (" at node 'conv1' (Conv)", or "") and the reason, in one line, from what ONNX's checker prints."""
    reason, _, context = message.partition("==> Context")
    reason = re.sub(r"^\[\w+\]\s*", "", " ".join(reason.split())).rstrip(".")
    named = re.search(r"Name: (.*) OpType: (\S+)", context) or re.search(r"\bname: (.*?) OpType: (\S+)", reason)
    where = f" at node '{named[1]}' ({named[2]})" if named and named[1] else ""
    return where, reason or "ONNX's checker gives no reason"
