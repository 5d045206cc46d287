"""build(): ONNX in, Engine out, compiled by the real TensorRT in a process of its own."""

from __future__ import annotations

import math
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil

from trtlab import cache as engine_cache
from trtlab.buildlog import read_engine
from trtlab.engine import Engine, Layer, Tensor
from trtlab.errors import AssetError, BuildError, ModelError, TrtlabError
from trtlab.gpus import Gpu, check_target
from trtlab.logs import diagnose_text, place_of_node, place_of_parser
from trtlab.machine import load_tensorrt, memory_gib
from trtlab.node_names import Names, rename_for_build
from trtlab.onnx_model import Model, Source, check_model, digest_of, external_files, inlined, parse, read_source
from trtlab.process import CompilerProcess, Limits, Transcript, cancelled
from trtlab.progress import Progress, progress_display
from trtlab.shapes import Shapes, check_profiles, read_shapes

_ASK = "look at the last lines of the error's .log; 'polygraphy debug reduce' finds the smallest part that fails."
_WORD = re.compile(r"[\w./\-]+")
_AT_ONCE = 2  # compiler processes: a build uses about one core, and memory for two copies of the weights


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
    memory = 0.8 * _free_gib() if memory_limit is None else memory_limit
    for stage, value, unit in (("time", time_limit, "seconds"), ("memory", memory, "GiB")):
        if not value > 0:
            raise BuildError(f"{stage}_limit is {value}.", stage=stage, fix=f"give a number of {unit} above zero.")
    limits = Limits(time_limit, memory * 2**30)
    profiles, source, trt = read_shapes(shapes), read_source(model), load_tensorrt()
    try:
        target = check_target(gpu, trt)
    except AssetError as error:
        raise BuildError(error.message, stage="target", fix=error.diagnosis.fix) from error
    order = {"target": target, "profiles": profiles, "tensorrt": [trt.__name__, str(trt.__version__)]}
    try:
        return (_from_cache if cache else _compile)(source, order, limits, progress)
    except KeyboardInterrupt as interrupt:
        raise cancelled(f"{source.title} was being checked") from interrupt


def _free_gib() -> float:
    return min(psutil.virtual_memory().available / 2**30, memory_gib() or math.inf)


def _from_cache(source: Source, order: dict[str, Any], limits: Limits, progress: bool | Progress) -> Engine:
    """The engine from the cache, or a new one that is kept there; one of several processes builds it.

    Whether weights are in other files follows from the content: an engine kept under the key without them needs none.
    """
    key = engine_cache.key_of(order, source.digest)
    if found := _cached(key):
        return found
    if source.external:
        key = engine_cache.key_of(order, source.digest, *map(digest_of, source.external))
        if found := _cached(key):
            return found
    with engine_cache.lock(key):
        return _cached(key) or _compile(source, order, limits, progress, key)


def _cached(key: str) -> Engine | None:
    """The engine of a whole cache entry."""
    found = engine_cache.load(key)
    try:
        return found and _engine(*found)
    except (LookupError, TypeError, ValueError, AttributeError):  # not a record that this version writes
        return None


def _compile(source: Source, order: dict[str, Any], limits: Limits, progress: bool | Progress, key: str = "") -> Engine:
    """A new engine, kept in the cache under `key`; the model is checked while TensorRT works on it."""
    with CompilerProcess(order["tensorrt"][0]) as process:  # started first: it loads TensorRT while the model is read
        given = parse(source)
        model = inlined(given)
        names = rename_for_build(model)
        try:
            external = external_files(model, source.path)  # refused where they may not be: TensorRT reads them
            check_profiles(order["profiles"], model)
            unchanged = model is given and not names.own
            job = {**order, "task": "build", "path": str(source.path) if external else None}
            if unchanged and source.path:
                process.begin({**job, "file": str(source.path)}, b"")
            else:
                process.begin(job, source.data if unchanged else model.SerializeToString(deterministic=True))
            check_model(model, source)
            del given, model
            with progress_display(progress, source.title) as report:
                told = process.finish(limits, report)
        except BuildError as error:
            raise _in_own_names(error, names) from error
    if key and source.path and digest_of(source.path) != source.digest:
        raise ModelError(f"{source.subject} changed while it was compiled.", fix="try again once it is written.")
    if told.error is not None:
        raise _failure(told, names, source)
    record = {"order": order, "messages": told.messages, "result": told.result, "names": asdict(names)}
    engine = _engine(record, told.plan)
    return _kept(engine, key, record) if key else engine


def _engine(record: dict[str, Any], plan: bytes | Path | None) -> Engine:
    """The Engine of a build: its layers with the model's own names, its figures, its log and its plan."""
    (module, version), result = record["order"]["tensorrt"], record["result"]
    messages, names = record["messages"], Names(**record["names"])
    engine = read_engine([(severity, names.disguise(message)) for severity, message in messages], result)
    return replace(
        engine,
        layers=tuple(_with_own_names(layer, names) for layer in engine.layers),
        ports=tuple(replace(port, name=names.ports.get(port.name, port.name)) for port in engine.ports),
        seconds=result["seconds"],
        compiler=f"{'TensorRT-RTX' if module == 'tensorrt_rtx' else 'TensorRT'} {version}",
        target=record["order"]["target"],
        log=names.restore(Transcript(messages).log),
        plan=plan,
    )


def _with_own_names(layer: Layer, names: Names) -> Layer:
    def own(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(replace(one, name=values.get(one.name, one.name)) for one in tensors) if values else tensors

    values = {**names.own, **names.ports}
    nodes = tuple(dict.fromkeys(map(names.holder, layer.onnx_nodes)))
    inputs, outputs, constants = map(own, (layer.inputs, layer.outputs, layer.constants))
    return replace(layer, onnx_nodes=nodes, inputs=inputs, outputs=outputs, constants=constants)


def _kept(engine: Engine, key: str, record: dict[str, Any]) -> Engine:
    """The engine with its plan in the cache, or in memory and with a warning when the cache cannot take it."""
    try:
        return replace(engine, plan=engine_cache.store(key, record, engine.plan_bytes()))
    except AssetError as error:
        warnings.warn(f"The engine was built but not cached. {error}", stacklevel=5)
        return engine


def _failure(told: Transcript, names: Names, source: Source) -> BuildError:
    """The BuildError for what the compiler process reported, in the model's own names."""
    error = told.error or {}
    said = error.get("said") or error["message"] or "\n".join(told.spoken("ERROR"))
    known = diagnose_text(names.restore(said))
    reason = " ".join(known.evidence.split())
    verb = {"parse": "import", "profile": "accept the profile for"}.get(error["stage"], "compile")
    where = names.restore(_place(told, names))
    message = f"TensorRT cannot {verb} {source.title}{where}: {reason or 'it gives no reason'}."
    diagnosis = replace(known, cause=known.cause if known.fix else message, fix=known.fix or _ASK)
    return BuildError(message, stage=error["stage"], log=names.restore(told.log), diagnosis=diagnosis)


def _place(told: Transcript, names: Names) -> str:
    """The node that TensorRT names, or that its message names, or where the parser stopped."""
    error, log = told.error or {}, [message for _, message in told.messages]
    said = [error["message"], *(told.spoken("ERROR") if error["stage"] == "build" else [])]
    if node := error.get("node") or next((word for word in _WORD.findall(" ".join(said)) if word in names.nodes), ""):
        return place_of_node(log, node, error.get("op", ""))
    return place_of_parser(log) if error["stage"] == "parse" else ""


def _in_own_names(error: BuildError, names: Names) -> BuildError:
    """The same error in the model's own names."""
    message, log = names.restore(error.message), names.restore(error.log)
    return type(error)(message, stage=error.stage, log=log, diagnosis=error.diagnosis.translated(names.restore))


def build_each(
    model: Model, shapes: Sequence[Mapping[str, Any]], gpu: str | float | Gpu | None = None, time_limit: float = 600
) -> list[Engine | TrtlabError]:
    """The engine of each of `shapes`, or the error that stopped its build; the model is read once.

    A build may take `time_limit` seconds, and its share of four fifths of the memory that is free.
    Ctrl-C ends the builds that run and starts no other. Raises ModelError when it is the model that no build accepts.
    """
    source, stop = read_source(model), threading.Event()
    memory = 0.8 * _free_gib() / _AT_ONCE

    def report(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt  # build() turns it into an error of its own and ends its process

    def one(wanted: Mapping[str, Any]) -> Engine | TrtlabError:
        try:
            return build(source, gpu, wanted, progress=report, time_limit=time_limit, memory_limit=memory)
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
