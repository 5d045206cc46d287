"""GPUs by name, and the build target that TensorRT calls their compute capability."""

from __future__ import annotations

import csv
import difflib
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from trtlab.errors import AssetError
from trtlab.files import data_file
from trtlab.machine import compute_capability, has_gpu


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


@cache
def all_gpus() -> tuple[Gpu, ...]:
    """Every GPU of data/gpus.csv, in the order of the file."""
    with data_file("gpus.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_gpu(row) for row in csv.DictReader(file))


def _gpu(row: dict[str, str]) -> Gpu:
    def number(column: str) -> float | None:
        return float(row[column]) if row[column] else None

    def known(column: str) -> float:
        return float(row[column])

    return Gpu(
        name=row["name"].replace("-", " "),
        compute_capability=row["compute_capability"],
        arch=row["arch"],
        sm=int(row["sm"]),
        boost_mhz=known("boost_mhz"),
        fp32_tflops=known("fp32_tflops"),
        fp16_tflops=number("fp16_tensor_dense_tflops"),
        tf32_tflops=number("tf32_dense_tflops"),
        int8_tops=number("int8_dense_tops"),
        fp8_tflops=number("fp8_dense_tflops"),
        bandwidth_gb_s=known("mem_bw_gbs"),
        l2_mb=known("l2_mb"),
        memory_gb=known("mem_gb"),
        tdp_w=known("tdp_w"),
        source=row["source"],
    )


def gpu(name: str) -> Gpu:
    """The GPU called `name`, in any spelling ("rtx4090", "A100 80GB"); an unknown name raises with the closest ones."""
    if not isinstance(name, str):
        raise AssetError(f"A GPU's name is text, not {type(name).__name__}.", fix='write it like "RTX 4090".')
    words = re.findall(r"[a-z]+|\d+", name.lower().replace("geforce", "").replace("nvidia", "").replace("tesla", ""))
    wanted = "".join(words)
    by_key = {re.sub(r"[^a-z0-9]", "", entry.name.lower()): entry for entry in all_gpus()}
    if wanted in by_key:
        return by_key[wanted]
    telling = len(wanted) > 2 or not wanted.isdigit()  # "4090" says which, "4" does not
    partial = [entry for key, entry in by_key.items() if words and telling and _contains(key, words)]
    if partial:
        return partial[0]
    close = difflib.get_close_matches(wanted, by_key, n=4, cutoff=0.4) or list(by_key)[:4]
    raise AssetError(
        f"No GPU called '{name}' is known.",
        fix=f"try {', '.join(by_key[key].name for key in close)}; lab.gpus.all_gpus() lists all {len(by_key)}.",
    )


def _contains(key: str, words: list[str]) -> bool:
    """True when the words stand in the key in this order, numbers whole: "a10" is not part of "a100"."""
    position = 0
    for word in words:
        match = re.compile(rf"(?<!\d){word}(?!\d)" if word.isdigit() else word).search(key, position)
        if match is None:
            return False
        position = match.end()
    return True


def target_of(where: str | float | Gpu | None) -> str:
    """The build target for a GPU, its name, a compute capability (8.9, "8.9") or a target ("SM89"); None is SM89.

    Whether this TensorRT can build for it is for `check_target` to say.
    """
    if where is None:
        return "SM89"
    if isinstance(where, Gpu):
        return where.target
    text = str(where).strip()
    match = re.fullmatch(r"(?:sm_?|compute_?)?(\d{1,2})\.?(\d)", text, re.IGNORECASE)
    return f"SM{match[1]}{match[2]}" if match else gpu(text).target


def targets(trt: Any) -> tuple[str, ...]:
    """The build targets that this TensorRT offers without a GPU, such as SM75 … SM120; empty for full TensorRT."""
    members = getattr(trt, "ComputeCapability", None)
    found = [name for name in dir(members) if re.fullmatch(r"SM\d+", name)] if members else []
    return tuple(sorted(found, key=lambda name: int(name[2:])))


def check_target(where: str | float | Gpu | None, trt: Any) -> str:
    """The target for `where` if this TensorRT can build for it, else an AssetError that names what can be chosen.

    Full TensorRT builds for the GPU of this machine alone; None is that GPU, and SM89 where there is none.
    """
    target, offered = target_of(where), targets(trt)
    if where is None and target_here() in offered:
        return target_here()
    if target in offered:
        return target
    if not offered:
        here = target_here()
        if where is None or target == here:
            return here or "this GPU"
        raise AssetError(
            f"TensorRT {trt.__version__} builds only for the GPU in this machine, not for {target}.",
            fix="leave gpu= out, or set TRTLAB_TENSORRT=rtx to compile for another GPU.",
        )
    names = {name: [entry.name for entry in all_gpus() if entry.target == name][-1:] for name in offered}
    choice = ", ".join(f"{name} ({', '.join(gpus)})" if gpus else name for name, gpus in names.items())
    raise AssetError(
        f"TensorRT-RTX {trt.__version__} cannot build for {target}.",
        fix=f"choose one of {choice}.",
    )


def target_here() -> str:
    """The target of this machine's first GPU, as the NVIDIA driver reports it; "" without one."""
    found = compute_capability() if has_gpu() else None
    return "SM" + found.replace(".", "") if found else ""
