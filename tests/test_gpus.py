"""A GPU by any usual spelling of its name, and the target that TensorRT calls it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import trtlab as lab
from trtlab import gpus, tensorrt_choice
from trtlab.errors import AssetError
from trtlab.gpus import all_gpus, check_target, target_of, targets

SPELLINGS = {
    "RTX 4090": "RTX 4090", "4090": "RTX 4090", "NVIDIA GeForce RTX 4090": "RTX 4090", "  rtx-  4090 ": "RTX 4090",
    "Tesla T4": "T4", "A10": "A10", "l40s": "L40S",
}  # fmt: skip


@pytest.mark.parametrize(("spelling", "name"), SPELLINGS.items())
def test_any_usual_spelling(spelling: str, name: str) -> None:
    assert lab.gpu(spelling).name == name


def test_every_gpu_is_found_by_its_own_name() -> None:
    for entry in all_gpus():
        assert lab.gpu(entry.name) == entry
        assert lab.gpu(entry.name.upper().replace(" ", "-")) == entry
    assert len({entry.name for entry in all_gpus()}) == len(all_gpus()) >= 30


@pytest.mark.parametrize(("short", "never"), [("A10", "A100"), ("A30", "A3000"), ("L4", "L40"), ("T4", "T400")])
def test_short_name_is_not_taken_for_a_longer_one(short: str, never: str) -> None:
    assert not lab.gpu(short).name.startswith(never) or short == never


@pytest.mark.parametrize(
    "name", ["4", "0", "", "  ", "geforce", "Radeon RX 7900", "💥", "TPU v4", "a" * 500, None, 8.9]
)
def test_unknown_name_gives_the_closest_and_how_to_give_a_compute_capability(name: Any) -> None:
    with pytest.raises(AssetError, match="is known") as caught:
        lab.gpu(name)
    suggested = caught.value.diagnosis.fix
    assert any(entry.name in suggested for entry in all_gpus())
    assert 'gpu="8.9"' in suggested


def test_a_card_without_figures_gets_others_of_its_own_compute_capability() -> None:
    with pytest.raises(AssetError, match=r"only its compute capability, 7\.5") as caught:
        lab.gpu("RTX 2080 Ti")
    suggested = [entry for entry in all_gpus() if entry.name in caught.value.diagnosis.fix]
    assert {entry.target for entry in suggested} == {"SM75"}
    assert "lab.build() takes" in caught.value.diagnosis.fix


def test_figures_are_plausible() -> None:
    for entry in all_gpus():
        assert entry.target.startswith("SM")
        assert 1 <= entry.sm <= 200
        assert 5 <= entry.tdp_w <= 1500
        assert 20 <= entry.bandwidth_gb_s <= 10_000
        assert entry.fp16_tflops is None or entry.fp16_tflops > entry.fp32_tflops / 2
        assert entry.source


# The second half is as people write them in bug reports; most have no figures.
WHERE: dict[Any, str] = {
    None: "SM89", 8.9: "SM89", "89": "SM89", "sm_89": "SM89", "SM89": "SM89", "compute_120": "SM120", 12.0: "SM120",
    "12.1": "SM121", "RTX 3090": "SM86", " T4 ": "SM75", "A100": "SM80",
    "A10G": "SM86", "Tesla P100": "SM60", "GTX 1050 Ti": "SM61", "GTX 1660": "SM75", "RTX 2080 Ti": "SM75",
    "NVIDIA GeForce RTX 3050 Ti Laptop GPU": "SM86", "RTX 4070 Ti SUPER": "SM89", "RTX A4000": "SM86",
    "RTX 6000 Ada": "SM89", "RTX PRO 6000 Blackwell": "SM120", "Jetson AGX Orin": "SM87", "Jetson Xavier NX": "SM72",
    "B200": "SM100",
}  # fmt: skip


@pytest.mark.parametrize(("where", "target"), WHERE.items())
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
    ("name", "words"), [("H100", "for SM90."), ("GTX 1080 Ti", "SM61, which is too old: SM75 and newer")]
)
def test_target_that_tensorrt_rtx_has_not_names_the_choice(name: str, words: str) -> None:
    with pytest.raises(AssetError, match="cannot build for SM") as caught:
        check_target(name, lab.trt)
    assert words in caught.value.message
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


def test_no_gpu_here_has_no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "has_gpu", lambda: False)
    assert gpus.target_here() == ""
    assert check_target(None, SimpleNamespace(__version__="10.9")) == "this GPU"


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
