"""build(): ONNX in, Engine out, compiled by the real TensorRT in a process of its own."""

from __future__ import annotations

import math
import re
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from trtlab import cache as engine_cache
from trtlab.buildlog import read_build_log, read_inspector
from trtlab.engine import Engine, Layer, Tensor
from trtlab.errors import AssetError, BuildError, Diagnosis, ModelError, ProfileError, TrtlabError
from trtlab.gpus import Gpu, check_target
from trtlab.machine import load_tensorrt, memory_gib
from trtlab.messages import diagnose_text, place_of_node, place_of_parser
from trtlab.node_names import Names, rename_for_build
from trtlab.onnx_model import Model, Source, check_model, inlined, parse, read_source
from trtlab.process import CompilerProcess, Limits, Progress, Transcript, cancelled, progress_display
from trtlab.shapes import Shapes, check_profiles, read_shapes

if TYPE_CHECKING:
    import pandas as pd


def build(
    model: Model,
    gpu: str | float | Gpu | None = None,
    shapes: Shapes = None,
    *,
    time_limit: float = 600,
    memory_limit: float | None = None,
    progress: bool | Progress = True,
    cache: bool = True,
) -> Engine:
    """Compile an ONNX model and describe the engine; no GPU is needed.

    `model` is a path, bytes or a ModelProto; `gpu` a name, a compute capability or a build target (default: the GPU
    of this machine, and SM89 where there is none); `shapes` maps each dynamic input to one shape or to (min, opt, max)
    (a shape tensor, whose values are sizes, to its values), or is a list of such maps, one a profile. `time_limit` is
    in seconds, `memory_limit` in GiB of the compiler's process (default: four fifths of what is free). `progress` may
    be a function of (phase, done, total).

    Raises BuildError (its subclasses ModelError and ProfileError for the model and the shapes) with a diagnosis; the
    caller's process survives an abort, a crash and Ctrl-C. Engines are cached by content.
    """
    limits = _limits(time_limit, memory_limit)
    profiles = read_shapes(shapes)
    source = read_source(model)
    trt = load_tensorrt()
    compiler = "TensorRT-RTX" if trt.__name__ == "tensorrt_rtx" else "TensorRT"
    order = {"target": _target(gpu, trt), "profiles": profiles, "tensorrt": [compiler, str(trt.__version__)]}
    try:
        return (_from_cache_or_new if cache else _new)(source, order, limits, progress)
    except KeyboardInterrupt as interrupt:
        raise cancelled(f"{source.title} was being checked") from interrupt


def _new(source: Source, order: dict[str, Any], limits: Limits, progress: bool | Progress) -> Engine:
    return _compile(source, order, limits, progress)[0]


def _from_cache_or_new(source: Source, order: dict[str, Any], limits: Limits, progress: bool | Progress) -> Engine:
    # Whether weights are in other files follows from the content: an engine kept under the key without them needs none.
    key = engine_cache.key_of(source, order, ())
    found = _cached(key)
    if found is None and source.external:
        key = engine_cache.key_of(source, order, source.external)
        found = _cached(key)
    if found is None:
        with engine_cache.lock(key):
            found = _cached(key)  # another process may have built it meanwhile
            if found is None:
                return _keep(key, *_compile(source, order, limits, progress))
    return found


def _cached(key: str) -> Engine | None:
    """The engine of a whole cache entry."""
    found = engine_cache.load(key)
    try:
        return found and replace(_engine(found[0]), plan=found[1])
    except (LookupError, TypeError, ValueError, AttributeError):  # not a record that this version writes
        return None


def _target(gpu: str | float | Gpu | None, trt: Any) -> str:
    try:
        return check_target(gpu, trt)
    except AssetError as error:
        raise BuildError(error.message, stage="target", fix=error.diagnosis.fix) from error


def _limits(seconds: float, gibibytes: float | None) -> Limits:
    if not seconds > 0:
        raise BuildError(f"time_limit is {seconds}.", stage="time", fix="give a number of seconds above zero.")
    if gibibytes is None:
        import psutil

        free = min(psutil.virtual_memory().available, (memory_gib() or math.inf) * 2**30)
        return Limits(seconds, int(0.8 * free))
    if not gibibytes > 0:
        raise BuildError(f"memory_limit is {gibibytes}.", stage="memory", fix="give a number of GiB above zero.")
    return Limits(seconds, int(gibibytes * 2**30))


def _compile(
    source: Source, order: dict[str, Any], limits: Limits, progress: bool | Progress
) -> tuple[Engine, dict[str, Any]]:
    with CompilerProcess() as process:  # started first: it loads TensorRT while the model is checked here
        given = parse(source)
        model = inlined(given)
        names = rename_for_build(model)
        try:
            check_model(model, source)
        except BuildError as error:
            raise _named(error, names) from error
        check_profiles(order["profiles"], model)
        unchanged = model is given and not names.own
        data = source.data if unchanged else model.SerializeToString(deterministic=True)
        job = {**order, "path": str(source.path) if source.external else None}
        del given, model
        with progress_display(progress, source.title) as report:
            try:
                transcript = process.run(job, data, limits, report)
            except BuildError as error:
                raise _named(error, names) from error
    if transcript.error is not None:
        raise _failure(transcript, names, source)
    record = {
        "order": order,
        "messages": transcript.messages,
        "result": transcript.result,
        "names": asdict(names),
    }
    return replace(_engine(record), plan=transcript.plan), record


def _engine(record: dict[str, Any]) -> Engine:
    """The Engine of a build: its layers with the model's own names, its figures and its log."""
    order, messages, result = record["order"], record["messages"], record["result"]
    names = Names(**record["names"])
    engine = read_build_log(names.disguise(message) for _, message in messages)
    if "inspector" in result:
        described = read_inspector(result["inspector"])
        engine = replace(engine, layers=described.layers, ports=described.ports)
    return replace(
        engine,
        layers=tuple(_with_own_names(layer, names) for layer in engine.layers),
        ports=tuple(replace(port, name=names.ports.get(port.name, port.name)) for port in engine.ports),
        network_layers=result["network_layers"],
        seconds=result["seconds"],
        compiler=" ".join(order["tensorrt"]),
        target=order["target"],
        log=names.restore(Transcript(messages=messages).log),
    )


def _with_own_names(layer: Layer, names: Names) -> Layer:
    def own(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(replace(tensor, name=values.get(tensor.name, tensor.name)) for tensor in tensors)

    values = {**names.own, **names.ports}
    nodes = tuple(dict.fromkeys(map(names.holder, layer.onnx_nodes)))
    if nodes == layer.onnx_nodes and not values:
        return layer
    return replace(
        layer, onnx_nodes=nodes, inputs=own(layer.inputs), outputs=own(layer.outputs), constants=own(layer.constants)
    )


def _keep(key: str, engine: Engine, record: dict[str, Any]) -> Engine:
    """The engine with its plan in the cache, or in memory and with a warning when the cache cannot take it."""
    assert isinstance(engine.plan, bytes)
    try:
        return replace(engine, plan=engine_cache.store(key, record, engine.plan))
    except AssetError as error:
        warnings.warn(f"The engine was built but not cached. {error}", stacklevel=4)
        return engine


def _failure(transcript: Transcript, names: Names, source: Source) -> BuildError:
    """The BuildError for what the compiler process reported, in the model's own names."""
    error = transcript.error or {}
    errors = "\n".join(message for severity, message in transcript.messages if severity.endswith("ERROR"))
    diagnosis = diagnose_text(names.restore(error["message"] or errors))
    verb = {"parse": "import", "profile": "accept the profile for"}.get(error["stage"], "compile")
    where = names.restore(_place(transcript, names))
    message = f"TensorRT cannot {verb} {source.title}{where}: {diagnosis.evidence or 'it gives no reason'}."
    return BuildError(
        message,
        stage=error["stage"],
        log=names.restore(transcript.log),
        diagnosis=Diagnosis(diagnosis.cause if diagnosis.fix else message, diagnosis.evidence, diagnosis.fix or _ASK,
                            diagnosis.reference),
    )  # fmt: skip


def _place(transcript: Transcript, names: Names) -> str:
    """The node that TensorRT names, or that its message names, or where the parser stopped."""
    error, log = transcript.error or {}, [message for _, message in transcript.messages]
    node = error.get("node") or next((word for word in _WORD.findall(error["message"]) if word in names.nodes), "")
    if not node and error["stage"] == "build":
        failed = " ".join(message for severity, message in transcript.messages if severity.endswith("ERROR"))
        node = next((word for word in _WORD.findall(failed) if word in names.nodes), "")
    if node:
        return place_of_node(log, node, error.get("op", ""))
    return place_of_parser(log) if error["stage"] == "parse" else ""


_WORD = re.compile(r"[\w./\-]+")


_ASK = "look at the last lines of the error's .log; 'polygraphy debug reduce' finds the smallest part that fails."


def _named(error: BuildError, names: Names) -> BuildError:
    """The same error in the model's own names."""
    diagnosis = error.diagnosis
    return type(error)(
        names.restore(error.message),
        stage=error.stage,
        log=names.restore(error.log),
        diagnosis=Diagnosis(
            names.restore(diagnosis.cause), names.restore(diagnosis.evidence), diagnosis.fix, diagnosis.reference
        ),
    )


_AT_ONCE = 2  # compiler processes: a build uses about one core, and memory for two copies of the weights


def sweep(model: Model, shapes: Sequence[Mapping[str, Any]], gpu: str | float | Gpu | None = None) -> pd.DataFrame:
    """Build `model` for each of `shapes`, maps as `build` takes them, and tell the figures: one row a shape.

    Columns: shapes, activation_bytes, weight_bytes, scratch_bytes, kernels, error. A shape that fails keeps its
    error in its row, without figures. Raises ModelError when there is no model, ProfileError when `shapes` is no list.
    """
    import pandas as pd

    if isinstance(shapes, Mapping | str) or not isinstance(shapes, Iterable):
        raise ProfileError(
            "sweep() takes a list of shapes, a map for each build.",
            fix="write [{'x': (batch, 3, 224, 224)} for batch in (1, 2, 4, 8)].",
        )
    wanted = list(shapes)
    rows = [
        {"shapes": _words(one), **_figures(result)}
        for one, result in zip(wanted, build_each(model, wanted, gpu), strict=True)
    ]
    columns = ["shapes", "activation_bytes", "weight_bytes", "scratch_bytes", "kernels", "error"]
    numbers = dict.fromkeys(columns[1:5], "Int64")
    return pd.DataFrame(rows, columns=columns).astype(numbers)


def build_each(
    model: Model, shapes: Sequence[Mapping[str, Any]], gpu: str | float | Gpu | None = None, time_limit: float = 600
) -> list[Engine | TrtlabError]:
    """The engine of each of `shapes`, or the error that stopped its build; the model is read once.

    A build may take `time_limit` seconds, and its share of four fifths of the memory that is free.
    Ctrl-C ends the builds that run and starts no other. Raises ModelError when it is the model that no build accepts.
    """
    import psutil

    source, stop = read_source(model), threading.Event()
    free = min(psutil.virtual_memory().available / 2**30, memory_gib() or math.inf)
    limits = {"time_limit": time_limit, "memory_limit": 0.8 * free / _AT_ONCE}

    def report(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt  # build() turns it into an error of its own and ends its process

    def one(wanted: Mapping[str, Any]) -> Engine | TrtlabError:
        try:
            return build(source, gpu, wanted, progress=report, **limits)
        except TrtlabError as error:
            return error

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        waiting = [pool.submit(one, wanted) for wanted in shapes]
        try:
            found = [future.result() for future in waiting]
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if found and all(isinstance(result, ModelError) for result in found):
        raise found[0]  # type: ignore[misc]
    return found


def _figures(result: Engine | TrtlabError) -> dict[str, Any]:
    if isinstance(result, TrtlabError):
        return {"error": result.message}
    return {
        "activation_bytes": result.activation_bytes,
        "weight_bytes": result.weight_bytes,
        "scratch_bytes": result.scratch_bytes,
        "kernels": len(result.kernels),
        "error": "",
    }


def _words(shapes: Any) -> str:
    """The shapes as a user would say them: "x 8×3×224×224"."""
    if not isinstance(shapes, Mapping):
        return str(shapes)
    return ", ".join(f"{name} {_shape(shape)}" for name, shape in shapes.items())


def _shape(shape: Any) -> str:
    if not isinstance(shape, tuple | list):
        return str(shape)
    joint = " … " if any(isinstance(size, tuple | list) for size in shape) else "×"
    return joint.join(_shape(size) for size in shape)
