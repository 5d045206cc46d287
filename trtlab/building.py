"""build(): ONNX in, Engine out, compiled by the real TensorRT in a process of its own."""

from __future__ import annotations

import math
import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
import psutil

from trtlab import cache as engine_cache
from trtlab.buildlog import read_engine
from trtlab.computer import memory_gib
from trtlab.engine import Engine, Layer
from trtlab.errors import AssetError, BuildError, ModelError, ProfileError, TrtlabError
from trtlab.gpus import Gpu, check_target
from trtlab.logs import diagnose_text, place_of_node
from trtlab.onnx_model import Model, Source, check_model, digest_of, external_files, inlined, parse, read_source
from trtlab.process import CompilerProcess, Progress, Transcript, cancelled, progress_display
from trtlab.renaming import Names, rename_for_build
from trtlab.shapes import Finding, Profile, Shapes, check_profiles, read_shapes
from trtlab.tensorrt_choice import load_tensorrt

_ASK = "change what the message names; if it names nothing, 'polygraphy debug reduce' finds the part that fails."
_WORD = re.compile(r"[\w./\-]+")
_SUFFIX = re.compile(r"_(?:[A-Za-z]*Layer|output|\d+)$")  # of the layers that TensorRT makes of one node
_AT_ONCE = 2  # compiler processes: a build uses about one core, and memory for two copies of the weights


def build(
    model: Model, gpu: str | float | Gpu | None = None, shapes: Shapes = None, *, time_limit: float = 600,
    memory_limit: float | None = None, progress: bool | Progress = True, cache: bool = True,
) -> Engine:  # fmt: skip
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
    profiles, source = read_shapes(shapes), read_source(model)

    def compiled(order: dict[str, Any] | None = None, key: str = "") -> Engine:
        with CompilerProcess() as process:  # started first: it loads TensorRT while the model is read here
            order = order or _order(gpu, profiles)
            return _compile(process, source, order, key, time_limit, memory * 2**30, progress)

    try:
        return _from_cache(source, _order(gpu, profiles), compiled) if cache else compiled()
    except KeyboardInterrupt as interrupt:
        raise cancelled(f"{source.title} was being checked") from interrupt


def _free_gib() -> float:
    return min(psutil.virtual_memory().available / 2**30, memory_gib() or math.inf)


def _order(gpu: str | float | Gpu | None, profiles: list[Profile]) -> dict[str, Any]:
    """What is asked of TensorRT, and which one it is."""
    trt = load_tensorrt()
    try:
        target = check_target(gpu, trt)
    except AssetError as error:
        raise BuildError(error.message, stage="target", fix=error.diagnosis.fix) from error
    return {"target": target, "profiles": profiles, "tensorrt": [trt.__name__, str(trt.__version__)]}


def _from_cache(source: Source, order: dict[str, Any], compiled: Callable[[dict[str, Any], str], Engine]) -> Engine:
    """The engine from the cache, or a new one that is kept there; one of several processes builds it."""
    key = engine_cache.key_of(order, source.digest)
    if found := _cached(key):  # an engine with this key has no weights in other files, or they would be in the key
        return found
    key = engine_cache.key_of(order, source.digest, *map(digest_of, source.external))
    with engine_cache.lock(key):
        return _cached(key) or compiled(order, key)


def _cached(key: str) -> Engine | None:
    """The engine of a whole cache entry."""
    found = engine_cache.load(key)
    try:
        return found and _engine(*found)
    except (LookupError, TypeError, ValueError, AttributeError):  # not a record that this version writes
        return None


def _compile(
    process: CompilerProcess, source: Source, order: dict[str, Any], key: str, seconds: float, memory: float,
    progress: bool | Progress,
) -> Engine:  # fmt: skip
    """A new engine, kept in the cache under `key`; the model is checked while TensorRT works on it."""
    model, names, data = _prepared(source)
    try:
        external = external_files(model, source.path)  # refused where they may not be: TensorRT reads them
        _check_profiles(order["profiles"], model)
        process.begin({**order, "task": "build", "path": str(source.path) if external else None}, data)
        check_model(model, source)
        del model, data
        with progress_display(progress, f"compiling {source.title}") as report:
            told = process.finish(seconds, memory, report)
    except BuildError as error:
        raise _in_own_names(error, names) from error
    if key and source.path and digest_of(source.path) != source.digest:
        raise ModelError(f"{source.title} changed while it was compiled.", fix="try again once it is written.")
    if told.error is not None or told.plan is None:
        raise _failure(told, names, source, order["profiles"])
    record = {"order": order, "messages": told.messages, "facts": told.facts, "names": asdict(names)}
    try:
        plan = engine_cache.store(key, record, told.plan) if key else told.plan
    except AssetError as error:
        plan = told.plan
        warnings.warn(f"The engine was built but not cached. {error}", stacklevel=5)
    return _engine(record, plan)


def _prepared(source: Source) -> tuple[onnx.ModelProto, Names, bytes | Path]:
    """The model to check, how to go back to its own names, and what TensorRT reads: the file where that will do."""
    given = parse(source)
    model = inlined(given)
    names = rename_for_build(model)
    if model is given and not names.own:
        return model, names, source.path or source.data
    return model, names, model.SerializeToString(deterministic=True)


def _engine(record: dict[str, Any], plan: bytes | Path | None) -> Engine:
    """The Engine of a build: its layers with the model's own names, its figures, its log and its plan."""
    (module, version), facts = record["order"]["tensorrt"], record["facts"]
    messages, names = record["messages"], Names(**record["names"])
    engine = read_engine([(severity, names.disguise(message)) for severity, message in messages], facts)
    values = {**names.own, **names.ports}

    def own(tensors: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(replace(one, name=values.get(one.name, one.name)) for one in tensors)

    def named(layer: Layer) -> Layer:
        name = re.sub(r"id_\d+", lambda found: values.get(found[0], found[0]), layer.name)  # such as id_3_U4_myl0_1
        nodes = tuple(dict.fromkeys(map(names.holder, layer.onnx_nodes)))
        inputs, outputs, constants = map(own, (layer.inputs, layer.outputs, layer.constants))
        return replace(layer, name=name, onnx_nodes=nodes, inputs=inputs, outputs=outputs, constants=constants)

    return replace(
        engine,
        layers=tuple(map(named, engine.layers)),
        ports=own(engine.ports),
        seconds=facts["seconds"],
        compiler=f"{'TensorRT-RTX' if module == 'tensorrt_rtx' else 'TensorRT'} {version}",
        target=record["order"]["target"],
        log=names.restore(Transcript(messages).log),
        plan=plan,
    )


def _check_profiles(profiles: list[Profile], model: onnx.ModelProto) -> None:
    """Raise ProfileError, as profiles.check() words it, when `profiles` do not fit the inputs of `model`."""
    try:
        check_profiles(profiles, model)
    except ProfileError as error:
        finding = _mistakes(model, profiles)[0]
        raise ProfileError(finding.mistake, fix=finding.fix) from error


def _mistakes(model: Model, profiles: list[Profile]) -> list[Finding]:
    """What profiles.check() finds to fix."""
    from trtlab.profiles import check  # here: it loads ONNX Runtime, which only a build that fails need wait for

    return [one for one in check(model, profiles) if one.verdict == "fix"]


def _failure(told: Transcript, names: Names, source: Source, profiles: list[Profile]) -> BuildError:
    """The BuildError for what the compiler process reported, in the model's own names."""
    error, where = told.error or {}, told.place
    said = [error.get("message", ""), *(told.spoken("ERROR") if told.stage == "build" else [])]
    if node := error.get("node") or _node_in(" ".join(said), names):
        where = place_of_node([message for _, message in told.messages], node, error.get("op", ""))
    known = diagnose_text(names.restore(error.get("said") or said[0] or "\n".join(told.spoken("ERROR"))))
    verb = {"parse": "import", "profile": "accept the profile for"}.get(told.stage, "compile")
    reason = " ".join(known.evidence.split()) or "it gives no reason"
    message = f"TensorRT cannot {verb} {source.title}{names.restore(where)}: {reason}."
    found = _mistakes(source, profiles) if told.stage in ("build", "profile") else []
    same = [one for one in found if not one.silent or (node and one.node == names.restore(node))]
    found = same or found * (not known.fix)
    if found:
        known = replace(known, cause=found[0].mistake, fix=found[0].fix, reference="")
        message = f"{message} {found[0].mistake}"
    diagnosis = replace(known, cause=known.cause if known.fix else message, fix=known.fix or _ASK)
    return BuildError(message, stage=told.stage, log=names.restore(told.log), diagnosis=diagnosis)


def _node_in(text: str, names: Names) -> str:
    """The first node that a message names, else the first one whose layer it names: If_0 for If_0_OutputLayer."""
    words, known = _WORD.findall(text), names.nodes
    while words and not (found := [word for word in words if word in known]):
        words = [shorter for word in words if (shorter := _SUFFIX.sub("", word)) != word]
    return found[0] if words else ""


def _in_own_names(error: BuildError, names: Names) -> BuildError:
    """The same error in the model's own names."""
    message, log = names.restore(error.message), names.restore(error.log)
    return type(error)(message, stage=error.stage, log=log, diagnosis=error.diagnosis.translated(names.restore))


def build_each(
    model: Model, shapes: Sequence[Mapping[str, Any]], gpu: str | float | Gpu | None = None
) -> list[Engine | TrtlabError]:
    """The engine of each of `shapes`, or the error that stopped its build.

    Ctrl-C ends the builds that run and starts no other. Raises ModelError when it is the model that no build accepts.
    """
    source, stop = read_source(model), threading.Event()
    memory = 0.8 * _free_gib() / _AT_ONCE

    def report(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt  # build() turns it into an error of its own and ends its process

    def one(wanted: Mapping[str, Any]) -> Engine | TrtlabError:
        try:
            return build(source, gpu, wanted, progress=report, memory_limit=memory)
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
