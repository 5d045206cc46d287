"""GPUs by name, and the build target that TensorRT calls their compute capability."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import pandas as pd

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
        return "SM" + self.compute_capability.replace(".", "")


# The compute capability of a family, for cards without figures (developer.nvidia.com/cuda-gpus); the first that fits.
_FAMILIES = {
    "121": r"gb10",
    "120": r"(rtx)?50[5-9]0.*|rtxpro\d000.*",
    "110": r"(agx)?thor|t[45]000",
    "100": r"g?b200.*",
    "90": r"g?h[128]00.*|h20",
    "89": r"(rtx)?40[5-9]0.*|rtx\d{3,4}.*ada|l4|l40.*|l20",
    "87": r".*orin.*",
    "86": r"a2|a10[gm]?|a16|a40|rtxa\d+|a[2-6][05]00|(rtx)?30[5-9]0.*|rtx2050",
    "80": r"(a30|a100|a800).*",
    "75": r"(rtx)?20[678]0.*|gtx16[356]0.*|titanrtx|rtx[34568]000|t4g?|t\d{3,4}",
    "70": r"v100.*|titanv|gv100",
    "61": r"gtx10[1-8]0.*|p40?|titanxp",
    "60": r"p100(?!0).*|gp100",
}


@cache
def all_gpus() -> tuple[Gpu, ...]:
    """Every GPU of data/gpus.csv, in the order of the file."""
    table = pd.read_csv(data_file("gpus.csv"), dtype={"compute_capability": str})[[one.name for one in fields(Gpu)]]
    table["name"] = table["name"].str.replace("-", " ")
    return tuple(Gpu(*row) for row in table.astype(object).where(table.notna(), None).to_numpy())


def gpu(name: str | Gpu) -> Gpu:
    """The GPU called `name`, in any spelling ("rtx4090", "A100 80GB"), with its figures.

    Raises AssetError for one that is not in data/gpus.csv; it names the closest, of the same compute capability.
    """
    if found := _find(name):
        return found
    family = _family(name)
    known = {key: one.name for key, one in _by_key().items() if family in ("", one.target)}
    close = difflib.get_close_matches(_key(name), known, n=4, cutoff=0)
    names = ", ".join(known[key] for key in close) or "a newer GPU"
    if family:
        what = f"The figures of '{name}' are not known, only its compute capability, {family[2:-1]}.{family[-1]}."
        raise AssetError(what, fix=f"try {names}; lab.build() takes '{name}' as it is.")
    fix = f'try {names}, or give its compute capability, such as gpu="8.9"; lab.gpus.all_gpus() lists all {len(known)}.'
    raise AssetError(f"No GPU called '{name}' is known.", fix=fix)


@cache
def _by_key() -> dict[str, Gpu]:
    return {_key(one.name): one for one in all_gpus()}


def _key(name: object) -> str:
    """The name without case, blanks and what says nothing: "geforcertx4090" and "RTX-4090" are one."""
    noise = "nvidia|geforce|tesla|quadro|jetson|laptop|mobile|gpu|generation|[^a-z0-9]"
    return re.sub(noise, "", str(name).lower())


def _find(name: object) -> Gpu | None:
    """The GPU whose name is `name`, or the first with its parts in this order, numbers whole: A10 is not in A100."""
    if isinstance(name, Gpu):
        return name
    known, wanted = _by_key(), _key(name)
    parts = [rf"(?<!\d){part}(?!\d)" if part.isdigit() else part for part in re.findall(r"[a-z]+|\d+", wanted)]
    telling = len(wanted) > 2 or len(parts) > 1  # "4090" says which, "4" does not
    holding = (one for key, one in known.items() if telling and re.search(".*".join(parts), key))
    return known.get(wanted) or next(holding, None)


def _family(name: object) -> str:
    """The target of every card whose name is like this one; "" when there is none."""
    return next((f"SM{number}" for number, names in _FAMILIES.items() if re.fullmatch(names, _key(name))), "")


def target_of(where: str | float | Gpu | None) -> str:
    """The build target for a GPU, its name, a compute capability (8.9, "8.9") or a target; None is SM89.

    Whether this TensorRT can build for it is for `check_target` to say.
    """
    if where is None:
        return "SM89"
    if match := re.fullmatch(r"(?:sm_?|compute_?)?(\d{1,2})\.?(\d)", str(where).strip(), re.IGNORECASE):
        return f"SM{match[1]}{match[2]}"
    found = _find(where)
    return found.target if found else _family(where) or gpu(str(where)).target


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
    newest = {one.target: f" ({one.name})" for one in all_gpus()}
    old = f", which is too old: {offered[0]} and newer" if int(target[2:]) < int(offered[0][2:]) else ""
    raise AssetError(
        f"TensorRT-RTX {trt.__version__} cannot build for {target}{old}.",
        fix=f"choose one of {', '.join(name + newest.get(name, '') for name in offered)}.",
    )


def target_here() -> str:
    """The target of this machine's first GPU, as the NVIDIA driver reports it; "" without one."""
    found = compute_capability() if has_gpu() else None
    return "SM" + found.replace(".", "") if found else ""
