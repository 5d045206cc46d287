"""A GPU by any usual spelling of its name, and the target that TensorRT calls it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import trtlab as lab
from trtlab import gpus, tensorrt_choice
from trtlab.errors import AssetError
from trtlab.files import data_file
from trtlab.gpus import all_gpus, check_target, target_of, targets


@pytest.mark.parametrize(
    ("spellings", "name"),
    [
        ("RTX 4090|4090|rtx4090|NVIDIA GeForce RTX 4090|  rtx-  4090 ", "RTX 4090"),
        ("Tesla T4|t4", "T4"),
        ("GTX1660Ti|GeForce GTX 1660 Ti", "GTX 1660 Ti"),
        ("GTX 2080 Ti|2080ti", "RTX 2080 Ti"),
        ("A6000|Quadro RTX A6000|NVIDIA RTX A6000", "RTX A6000"),
        ("RTX 6000 Ada|NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("RTX PRO 6000|RTX 6000 Blackwell", "RTX PRO 6000 Blackwell Workstation"),
        ("A100|NVIDIA A100-SXM4-40GB", "A100 SXM4 40GB"),
        ("A100 80GB PCIe", "A100 PCIE 80GB"),
        ("H100|NVIDIA H100 80GB HBM3", "H100 SXM5 80GB"),
        ("NVIDIA GH200 480GB", "GH200 96GB"),
        ("Jetson AGX Orin Developer Kit", "AGX Orin 64GB"),
        ("RTX 3080", "RTX 3080 10GB"),
    ],
)
def test_any_usual_spelling(spellings: str, name: str) -> None:
    assert {lab.gpu(spelling).name for spelling in spellings.split("|")} == {name}


def test_every_gpu_is_found_by_its_own_name() -> None:
    for entry in all_gpus():
        assert lab.gpu(entry.name) == entry
        assert lab.gpu(entry.name.upper().replace(" ", "-")) == entry
    assert len({entry.name for entry in all_gpus()}) == len(all_gpus()) >= 80


@pytest.mark.parametrize("file", ["gpus.csv", "gpu_names.csv", "compute_capabilities.csv"])
def test_every_row_has_its_source_and_a_compute_capability_with_a_builder(file: str) -> None:
    table = pd.read_csv(data_file(file), dtype=str)
    known = pd.read_csv(data_file("compute_capabilities.csv"), dtype=str)
    assert set(table["compute_capability"]) <= set(known["compute_capability"])
    assert table["source"].notna().all()
    assert not table.iloc[:, 0].duplicated().any()
    for _, row in table[table.columns.intersection(["name", "compute_capability"])].iterrows():
        assert target_of(row.iloc[0]) == "SM" + row["compute_capability"].replace(".", "")


@pytest.mark.parametrize(
    ("name", "says", "first"),
    [
        ("RTX 4090 Laptop GPU", "only its compute capability, 8.9 (Ada)", "RTX 4090"),
        ("A100-SXM4-40GB MIG 1g.5gb", "only its compute capability, 8.0 (Ampere)", "A100"),
        ("RTX 3060 8GB", "only its compute capability, 8.6", "RTX 3060 12GB"),
        ("A10G", "only its compute capability, 8.6 (Ampere)", "A10, A40"),
        ("RTX 4900", "is known", "RTX 40"),
        ("RTX 2090", "is known", "RTX 20"),
        ("H10", "is known", "H100"),
        ("Radeon RX 7900", "is not a GPU of NVIDIA's", "RTX"),
        *((name, "is known", "RTX 4090") for name in ["0", "", "geforce", "💥", "a" * 500, "9.9", []]),
        *((name, "is known", "") for name in ["4", None]),
        ("SM87", "is known", "Orin"),
        ("TPU v4", "is not a GPU of NVIDIA's", "RTX"),
        ("RTX 6000", "may be Quadro RTX 6000 (SM75) or RTX 6000 Ada (SM89) or RTX PRO 6000", None),
        ("Titan X", "may be TITAN X Pascal (SM61) or GTX TITAN X (SM52)", None),
        ("Orin", "may be AGX Orin 64GB (SM87) or Orin NX", None),
    ],
)
def test_a_name_without_figures_says_why_and_what_is_closest(name: Any, says: str, first: str | None) -> None:
    with pytest.raises(AssetError) as caught:
        lab.gpu(name)
    assert says in caught.value.message
    fix = caught.value.diagnosis.fix
    assert fix.startswith("write the name in full" if first is None else f"try {first}")


def test_figures_are_plausible() -> None:
    for entry in all_gpus():
        assert entry.target.startswith("SM")
        assert 1 <= entry.sm <= 200
        assert 5 <= entry.tdp_w <= 1500
        assert 20 <= entry.bandwidth_gb_s <= 10_000
        assert entry.fp16_tflops is None or entry.fp16_tflops > entry.fp32_tflops / 2
        assert entry.source


NAMED = {  # as people write them in bug reports; many have no figures
    "SM53": ["Jetson Nano"],
    "SM60": ["Tesla P100", "Tesla P100-PCIE-16GB"],
    "SM61": ["GTX 1050 Ti", "P2000"],
    "SM72": ["Jetson Xavier NX", "Xavier"],
    "SM75": [" T4 ", "compute capability 7.5", "GTX 1660", "RTX 2080 Ti", "T1000", "GeForce MX450"],
    "SM80": ["A100", "80"],
    "SM86": ["RTX 3090", "A10G", "NVIDIA GeForce RTX 3050 Ti Laptop GPU", "RTX 2050", "RTX A4000", "A10-24Q", (8, 6)],
    "SM87": ["Jetson AGX Orin", "Orin"],
    "SM89": [None, 8.9, "89", "sm_89", "SM89", "RTX 4070 Ti SUPER", "RTX 6000 Ada", "500"],  # RTX 500 Ada
    "SM90": ["sm_90a", "H20"],
    "SM100": ["B200", "100"],
    "SM103": ["GB300"],
    "SM110": ["Jetson AGX Thor"],
    "SM120": ["compute_120", 12.0, "RTX PRO 6000 Blackwell", "5070 Ti"],
    "SM121": ["12.1", "DGX Spark"],
}


@pytest.mark.parametrize(("where", "target"), [(where, target) for target in NAMED for where in NAMED[target]])
def test_target_of_anything_that_names_one(where: Any, target: str) -> None:
    assert target_of(where) == target
    if isinstance(where, str) and where.strip() in {entry.name for entry in all_gpus()}:
        assert target_of(lab.gpu(where)) == target


def test_targets_of_the_real_tensorrt_rtx() -> None:
    offered = targets(lab.trt)
    assert {"SM75", "SM80", "SM86", "SM89", "SM120"} <= set(offered)
    assert list(offered) == sorted(offered, key=lambda name: int(name[2:]))
    assert check_target("RTX 4090", lab.trt) == "SM89"


@pytest.mark.parametrize(
    ("name", "words", "instead"),
    [
        ("H100", "for SM90.", "full TensorRT 8.6 or later"),
        ("B200", "for SM100.", "full TensorRT 10.8 or later"),
        ("Orin", "for SM87.", "TensorRT 10.3 of JetPack 6"),
        ("GTX 1080 Ti", "SM61, which is too old: SM75 and newer", "full TensorRT up to 8.6"),
        ("V100", "SM70, which is too old", "full TensorRT up to 10.4"),
        ("SM99", "no GPU has compute capability 9.9", "choose one of"),
    ],
)
def test_target_that_tensorrt_rtx_has_not_names_the_choice(name: str, words: str, instead: str) -> None:
    with pytest.raises(AssetError, match="cannot build for SM") as caught:
        check_target(name, lab.trt)
    assert words in caught.value.message
    assert instead in caught.value.diagnosis.fix
    for target in targets(lab.trt):
        assert target in caught.value.diagnosis.fix


def test_full_tensorrt_builds_for_the_gpu_here_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    full = SimpleNamespace(__version__="10.9")
    monkeypatch.setattr(gpus, "target_here", lambda: "SM86")
    assert targets(full) == ()
    assert check_target(None, full) == "SM86"
    assert check_target("RTX 3090", full) == "SM86"
    with pytest.raises(AssetError, match="not for SM89"):
        check_target("RTX 4090", full)
    monkeypatch.setattr(gpus, "target_here", lambda: "")
    assert check_target(None, full) == "this GPU"


def test_no_gpu_named_means_the_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "target_here", lambda: "SM120")
    assert gpus.check_target(None, lab.trt) == "SM120"
    monkeypatch.setattr(gpus, "target_here", lambda: "SM90")  # there, but not one that TensorRT-RTX builds for
    assert gpus.check_target(None, lab.trt) == "SM89"


def driver(library: str) -> SimpleNamespace:
    """NVIDIA's driver library with one GPU of compute capability 12.1."""
    if library != "libcuda.so.1":
        raise OSError(library)

    def write(pointer: Any, value: int) -> int:
        pointer._obj.value = value
        return 0

    return SimpleNamespace(
        cuInit=lambda flags: 0,
        cuDeviceGetCount=lambda count: write(count, 1),
        cuDeviceGetAttribute=lambda value, attribute, device: write(value, {75: 12, 76: 1}[attribute]),
    )


def test_the_driver_tells_the_target_of_the_gpu_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", driver)
    assert gpus.target_here() == "SM121"
    assert tensorrt_choice.candidates() == ("tensorrt", "tensorrt_rtx")
    no_device = SimpleNamespace(cuInit=lambda flags: 100)  # CUDA_ERROR_NO_DEVICE
    monkeypatch.setattr("ctypes.CDLL", lambda library: no_device)
    assert gpus.target_here() == ""
    assert tensorrt_choice.candidates() == ("tensorrt_rtx", "tensorrt")
