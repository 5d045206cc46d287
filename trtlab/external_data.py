"""Weights that an ONNX file keeps in files beside it: they may not leave its folder."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from trtlab.errors import ModelError
from trtlab.onnx_model import inlined, parse, read_source, tensors

if TYPE_CHECKING:
    import onnx

    from trtlab.onnx_model import Model


def read_whole(model: Model) -> onnx.ModelProto:
    """`model` with its functions inlined and its external weights inside; a ModelProto that is whole stays as it is.

    Raises ModelError where one cannot be read, and where all of it is more than the 2 GiB of one message.
    """
    import onnx

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
    import onnx

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
    from trtlab.model_check import weight_bytes

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
