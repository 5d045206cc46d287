"""What went wrong, why, and what to do next: from a message, an exception, a log file, a model or an engine."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import onnx

from trtlab.engine import Engine
from trtlab.errors import Cause, Diagnosis, TrtlabError
from trtlab.export_checks import checklist
from trtlab.graph import Facts, sized_tensors
from trtlab.logs import diagnose_lines, diagnose_text, lines_of
from trtlab.messages import meaning, plain, table
from trtlab.onnx_model import Model, Source, check_model, inlined, node_names, parse, read_source, without_weights
from trtlab.shapes import inputs_of
from trtlab.tables import shape_text

_NAMES_A_FILE = re.compile(r"\S+\.(?:onnx|onx|log|txt|plan|engine|trt|pth?|data|json)", re.IGNORECASE)
_BINARY = re.compile(rb"(?!\xff\xfe|\xfe\xff).*[\x01-\x08\x0e-\x1a\x1c-\x1f]", re.DOTALL)  # such as an engine


def diagnose(what: str | BaseException | Model | Engine) -> Diagnosis:
    """The Diagnosis of a message (text), an exception, a log (the path of a file, no .onnx), a model or an Engine.

    A model is a path, bytes or ModelProto: what keeps it from building stands before what is not as it was meant. A
    text without spaces that ends as such a file does, as in .onnx, .log or .plan, is a path.
    """
    if isinstance(what, TrtlabError):
        return what.diagnosis
    if isinstance(what, BaseException):
        return diagnose_text("\n".join(_told(what)))
    if isinstance(what, Engine):
        return _diagnose_engine(what)
    if isinstance(what, bytes | bytearray) and b"\0" not in what and not _BINARY.match(what[:200]):
        return diagnose_lines(lines_of(io.BytesIO(what)))
    what = os.path.expanduser(what) if isinstance(what, str) and what.startswith("~") else what
    if isinstance(what, str) and not os.path.exists(what):
        return _diagnose_file(Path(what)) if _NAMES_A_FILE.fullmatch(what) else diagnose_text(what)
    return _diagnose_file(Path(what)) if isinstance(what, str | os.PathLike) else _diagnose_model(what)


def _told(error: BaseException) -> list[str]:
    """What an exception says, after what the exceptions before it said."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    inner = [line for one in getattr(error, "exceptions", ()) for line in _told(one)]  # of an ExceptionGroup
    printed = [getattr(error, name, None) or "" for name in ("stdout", "stderr")]  # by a command that failed
    said = [text.decode(errors="replace") if isinstance(text, bytes) else str(text) for text in printed]
    own = f"{type(error).__name__}: {error}"
    own = own if not any(said) else f"{type(error).__name__}: exit code {getattr(error, 'returncode', None)}"
    return [*(_told(before) if before else ()), *inner, *said, own, *getattr(error, "__notes__", ())]


def _diagnose_file(path: Path) -> Diagnosis:
    with contextlib.suppress(OSError, ValueError), path.open("rb") as file:  # said below, as of a model
        if path.suffix.lower() != ".onnx" and not _BINARY.match(file.peek(64)[:64]):
            return diagnose_lines(lines_of(file))
    return _diagnose_model(path)


def _diagnose_model(model: Model) -> Diagnosis:
    try:
        source = read_source(model)
        proto = parse(source)
        check_model(proto, source)
        causes = _causes_in(source, inlined(proto))
    except TrtlabError as error:
        return error.diagnosis
    nothing = (
        "ONNX's checker and the rules that trtlab knows find nothing: build() it; an error carries its own diagnosis."
    )
    return Diagnosis.of(causes) if causes else Diagnosis("The model is valid ONNX.", nothing)


def _causes_in(source: Source, model: onnx.ModelProto) -> list[Cause]:
    """What export_checks and profiles tell to fix in a valid model: first what TensorRT refuses."""
    facts = Facts(model)
    problems = {check.name: check for check in checklist(facts).problems}
    problems.pop("constants as inputs" if model.ir_version < 4 else "", None)  # once every constant had to be one
    refused, unmeant = (
        [Cause(text, problems[name].found, problems[name].advice) for name, text in told.items() if name in problems]
        for told in table()["checks"].values()
    )
    refused += [*_quantized_wrongly(facts), *_growing(facts)]
    known = " ".join(cause.text for cause in refused)
    if not any(port.dynamic for port in inputs_of(model).values()):
        from trtlab.profiles import check  # here, so that a message need not wait for ONNX Runtime

        wrong = [f for f in check(source) if f.verdict == "fix" and f"'{f.node}'" not in known]
        refused += [Cause(f.mistake, f"TensorRT: {f.tensorrt}", f.fix) for f in wrong]
    refused += _mistyped(model, refused)
    return refused + unmeant


def _growing(facts: Facts) -> Iterator[Cause]:
    """The Loops whose state has another shape after a turn, as far as ONNX can tell."""
    model = facts.model
    for node in (node for node in facts.graph.node if node.op_type == "Loop"):
        body = next(one.g for one in node.attribute if one.name == "body")
        states = zip(body.input[2:], node.input[2:], body.output[1:], strict=False)
        shapes = [(one.name, facts.shapes.get(given, (None,)), after.name) for one, given, after in states]
        known = {name: shape for name, shape, _ in shapes if all(isinstance(size, int) for size in shape)}
        turn = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=body)
        later = sized_tensors(turn, known)  # type: ignore[arg-type]
        for name, shape, after in shapes:
            if name in known and after in later and shape != later[after].shape:
                first, then = (",".join(map(str, sizes)) for sizes in (shape, later[after].shape))
                said = f"inputs to IRecurrenceLayer have different dimensions. First input has dimensions [{first}]"
                if known_rule := meaning(f"{said} and second input has dimensions [{then}]", node.name, "Loop"):
                    yield known_rule[1]


def _quantized_wrongly(facts: Facts) -> Iterator[Cause]:
    """What TensorRT refuses of the constant scales of Q/DQ nodes, in its own words."""
    for node in (node for node in facts.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")):
        scales, shape = facts.value(node, 1), facts.shapes.get(node.input[0], ())
        held = {one.name: one.i for one in node.attribute}
        said = "Scale coefficients must be positive" if scales is not None and not (scales > 0).all() else ""
        if scales is not None and scales.ndim == 1 and scales.size > 1 and shape and not held.get("block_size"):
            axis = held.get("axis", 1)
            size = shape[axis] if -len(shape) <= axis < len(shape) else 0
            if isinstance(size, int) and size != scales.size:
                said = "The number of scales is not equal to the number of output channels: "
                said += f"'{node.input[0]}', {shape_text(shape)}, has {size} along axis {axis} for {scales.size} scales"
        if known := said and meaning(said, node.name, node.op_type):
            yield known[1]


def _mistyped(model: onnx.ModelProto, found: list[Cause]) -> Iterator[Cause]:
    """What ONNX's inference of types and shapes refuses, unless something is `found` at that node already."""
    light = without_weights(model)
    for node, name in zip(light.graph.node, node_names(light.graph), strict=True):
        node.name = name
    said = None
    try:
        onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # what cannot be inferred for another reason is no fault of the model
        said = re.search(r"\(op_type:(\w+), node name: (.*?)\): (.*)", str(error))
    if said and not any(f"'{said[2]}'" in cause.text + cause.evidence for cause in found):
        op, name, reason = said.groups()
        text = f"ONNX's types and shapes do not fit at node '{name}' ({op}): {plain(reason)}."
        fix = f"compare what it reads, and its attributes, with {op}'s page in ONNX's documentation."
        known = meaning(reason, name, op)
        yield known[1] if known else Cause(text, plain(reason), fix)


def _diagnose_engine(engine: Engine) -> Diagnosis:
    from trtlab.precision.in_engine import idle_quantization, precisions

    if cause := idle_quantization(engine):
        return Diagnosis.of([cause])
    held = ", ".join(f"{row.kernels} {row.precision}" for row in precisions(engine).itertuples())
    return Diagnosis("The engine is fine as far as its layers tell.", f"Its kernels read: {held or 'nothing'}.")
