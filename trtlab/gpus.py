"""GPUs by name, and the build target that TensorRT calls their compute capability."""

from __future__ import annotations

import csv
import difflib
import re
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from trtlab.errors import AssetError
from trtlab.files import data_file
from trtlab.tensorrt_choice import compute_capability, has_gpu


@dataclass(frozen=True)
class Gpu:
    """One row of data/gpus.csv. Peaks are dense; a figure its source does not give is None."""

    name: str
    compute_capability: str
    arch: str
    sm: int
    boost_mhz: float
    fp32_tflops: float
    fp16_tflops: float | None
    tf32_tflops: float | None
    int8_tops: float | None
    fp8_tflops: float | None
    bandwidth_gb_s: float
    l2_mb: float
    memory_gb: float
    tdp_w: float
    source: str

    @property
    def target(self) -> str:
        """The build target, `SM89` for compute capability 8.9."""
        return _target(self.compute_capability)


# A name has words of its family, which people leave out ("rtx"), words that tell cards of one model apart ("laptop",
# "80gb") and words that say nothing ("nvidia"; the 480 GB of a GH200 are its CPU's); the rest is its model ("4090").
_FAMILY = r"quadro|rtx|gtx|pro(?=\d)|agx|ada$|blackwell|pascal|(?<=orin)n(?:x|ano)|(?<=xavier)nx"
_VARIANT = r"\b(?!480)\d+ ?gb|sxm\d?|pcie|nvl|laptop|mobile|max-?q|server|workstation|sff|mig\b.*|\b\d{1,2}[qcab]\b"
_NOISE = r"nvidia|geforce|tesla|jetson|gpu|generation|edition|design|with|lovelace|developer|kit|480gb|hbm\d\w?|\W|_"
_OTHERS = r"\b(amd|radeon|rx|instinct|mi\d+\w?|gfx\w+|intel|arc|apple|m\d (pro|max|ultra)|tpu|gaudi|adreno|mali)\b"
_CAPABILITY = r"\(?(?:sm|cc|compute(?: capability)?)?[ _]?(\d{1,2})(?:\.|, ?)?(\d)[af]?\)?"


@cache
def _table(file: str) -> tuple[dict[str, str], ...]:
    """The rows of a file of data/, each with its build target; without pandas, which a build need not wait for."""
    with data_file(file).open(encoding="utf-8", newline="") as lines:
        return tuple(row | {"target": _target(row["compute_capability"])} for row in csv.DictReader(lines))


@cache
def _capabilities() -> dict[str, dict[str, str]]:
    """What data/compute_capabilities.csv says of each build target."""
    return {row["target"]: row for row in _table("compute_capabilities.csv")}


@cache
def all_gpus() -> tuple[Gpu, ...]:
    """Every GPU of data/gpus.csv, in the order of the file."""
    return tuple(map(_gpu, _table("gpus.csv")))


def _gpu(row: dict[str, str]) -> Gpu:
    kinds: dict[Any, Any] = {"str": str, "int": int}
    found = {one.name: kinds.get(one.type, float)(row[one.name]) if row[one.name] else None for one in fields(Gpu)}
    known: dict[str, Any] = found | {"name": row["name"].replace("-", " ")}
    return Gpu(**known)


@cache
def _names() -> dict[str, str]:
    """The build target of every name in data/gpus.csv and data/gpu_names.csv."""
    return {one.name: one.target for one in all_gpus()} | {
        row["name"]: row["target"] for row in _table("gpu_names.csv")
    }


def _target(capability: str) -> str:
    return "SM" + capability.replace(".", "")


def _key(name: object) -> str:
    """The words of model and family: "rtx4090" for "NVIDIA GeForce RTX 4090 Laptop GPU"."""
    return re.sub(_NOISE, "", re.sub(_VARIANT, " ", str(name).lower()))


def _split(name: object) -> tuple[str, frozenset[str], frozenset[str]]:
    """A name's model, family and variant: "4090", {"rtx"}, {"laptop"}."""
    variant = (re.sub(r"\W|(?<=sxm)\d", "", word) for word in re.findall(_VARIANT, str(name).lower()))
    return re.sub(_FAMILY, "", _key(name)), frozenset(re.findall(_FAMILY, _key(name))), frozenset(variant)


def gpu(name: str | Gpu) -> Gpu:
    """The GPU called `name`, in any spelling ("rtx4090", "A100 80GB"), with its figures.

    Raises AssetError for a name that is none or may be several, and for a card without figures; it names the closest.
    """
    if isinstance(name, Gpu):
        return name
    found, figures = _called(name), {one.name: one for one in all_gpus()}
    if known := [one for one in found if one in figures and _split(name)[2] <= _split(one)[2]]:
        return figures[_one_family(name, known)[0]]
    target, arch = _names()[found[0]], {key: row["architecture"] for key, row in _capabilities().items()}
    close = [one for one in _closest(found[0]) if one in figures and arch[_names()[one]] == arch[target]]
    fix = f"try {', '.join(close[:4])}" if close else f"take a GPU of another architecture than {arch[target]}"
    what = f"only its compute capability, {target[2:-1]}.{target[-1]} ({arch[target]})"
    raise AssetError(f"Of '{name}' no figures are known, {what}.", fix=f"{fix}; lab.build() needs no figures.")


def _called(name: object) -> list[str]:
    """The known names that `name` may mean, all of one target; raises AssetError for none and for several targets."""
    model, family, _ = _split(name)
    same = [one for one in _names() if model and _split(one)[0] == model]
    wider = [one for one in same if family <= _split(one)[1]] or same
    if found := [one for one in wider if _split(one)[1] == family] or wider:
        return found if len({_names()[one] for one in found}) == 1 else _one_family(name, found)
    other = re.search(_OTHERS, str(name).lower())
    what = f"'{name}' is not a GPU of NVIDIA's." if other else f"No GPU called '{name}' is known."
    close = [*{_key(one): one for one in _closest("" if other else name)}.values()]
    raise AssetError(what, fix=f'try {", ".join(close[:4])}; lab.build() takes a compute capability too, gpu="8.9".')


def _one_family(name: object, found: list[str]) -> list[str]:
    """The names, if they are of one family; else an AssetError, such as for "Orin": AGX Orin or Orin NX."""
    each = {_split(one)[1]: f"{one} ({_names()[one]})" for one in reversed(found)}
    if len(each) > 1:
        raise AssetError(f"'{name}' may be {' or '.join(reversed(each.values()))}.", fix="write the name in full.")
    return found


def _closest(name: object) -> list[str]:
    """All names, those of the likeliest target first, the more alike the earlier; usual ones first for nonsense."""
    keys = {one: _key(one)[:5] + _key(one) for one in [str(name), *_names()]}  # how a name begins tells the most
    likeness = {one: difflib.SequenceMatcher(None, keys[str(name)], keys[one]).ratio() for one in _names()}
    close, given = sorted(likeness, key=lambda one: -likeness[one]), _capability(name)
    if given not in _names().values() and likeness[close[0]] < 0.6:
        return ["RTX 4090", "RTX 3090", "T4", "L4", *close]
    return sorted(close, key=lambda one: _names()[one] != (given or _names()[close[0]]))


def _capability(where: object) -> str:
    """The target that a number or a target stands for: 8.9, "89", (8, 9), "sm_89" are SM89; else ""."""
    match = re.fullmatch(_CAPABILITY, str(where).strip(), re.IGNORECASE)
    target = f"SM{match[1]}{match[2]}" if match else ""
    return "" if str(where).isdigit() and target not in _capabilities() else target


def target_of(where: str | float | Gpu | None) -> str:
    """The build target for a GPU, its name, a compute capability (8.9, "8.9") or a target; None is SM89.

    Whether this TensorRT can build for it is for `check_target` to say.
    """
    if where is None or isinstance(where, Gpu):
        return where.target if where else "SM89"
    return _capability(where) or _names()[_called(where)[0]]


def targets(trt: Any) -> tuple[str, ...]:
    """The build targets that this TensorRT offers without a GPU, such as SM75 … SM120; empty for full TensorRT."""
    found = [name for name in dir(getattr(trt, "ComputeCapability", None)) if re.fullmatch(r"SM\d+", name)]
    return tuple(sorted(found, key=lambda name: int(name[2:])))


def check_target(where: str | float | Gpu | None, trt: Any) -> str:
    """The target for `where` if this TensorRT can build for it, else an AssetError that names what can be chosen.

    Full TensorRT builds for the GPU of this machine alone; None is that GPU, and SM89 where there is none.
    """
    target, offered, here = target_of(where), targets(trt), target_here()
    if where is None and (here in offered or not offered):
        return here or "this GPU"
    if target in (offered or (here,)):
        return target
    if not offered:
        raise AssetError(
            f"TensorRT {trt.__version__} builds only for the GPU in this machine, not for {target}.",
            fix="leave gpu= out, or set TRTLAB_TENSORRT=rtx to compile for another GPU.",
        )
    example = {of: f" ({name})" for name, of in reversed(_names().items())}
    choice = f"choose one of {', '.join(name + example.get(name, '') for name in offered)}."
    why = f", which is too old: {offered[0]} and newer" if int(target[2:]) < int(offered[0][2:]) else ""
    if known := _capabilities().get(target):
        choice = f"build on that GPU with {known['tensorrt']}, or {choice}"
    else:
        why = f": no GPU has compute capability {target[2:-1]}.{target[-1]}"
    raise AssetError(f"TensorRT-RTX {trt.__version__} cannot build for {target}{why}.", fix=choice)


def target_here() -> str:
    """The target of this machine's first GPU, as the NVIDIA driver reports it; "" without one."""
    found = compute_capability() if has_gpu() else None
    return _target(found) if found else ""
