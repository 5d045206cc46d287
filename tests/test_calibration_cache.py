"""The calibration cache: used where it fits, refused where it does not, and no other file is ever touched."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import tiny_models

import trtlab as lab
from trtlab.precision import Quantized, int8, quantize, read_tensorrt_cache
from trtlab.precision.calibration import cached_scales

SAMPLES = {"x": np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)}


def calibrated(path: Path, **options: object) -> Quantized:
    return quantize(tiny_models.conv("N"), SAMPLES, base="fp32", cache=path, **options)


def refused(match: str, path: Path, samples: object = SAMPLES, **options: object) -> None:
    """Assert that a cache is refused, and stays as it is."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(lab.AssetError, match=match) as caught:
        quantize(options.pop("model", tiny_models.conv("N")), samples, cache=path, **options)
    assert caught.value.diagnosis.fix
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_cache_is_made_once_and_read_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scales.json"
    first = calibrated(path)
    assert [file.name for file in tmp_path.iterdir()] == ["scales.json"]
    monkeypatch.setattr(int8, "calibrate", None)  # would fail when called
    assert calibrated(path).scales == first.scales
    assert calibrated(path).model == first.model


def test_a_cache_made_for_some_nodes_serves_every_placement(tmp_path: Path) -> None:
    path = tmp_path / "scales.json"
    calibrated(path, nodes=["conv2"])
    content = path.read_bytes()
    for options in ({}, {"nodes": ["conv1"]}, {"residual": False}, {"weights": False}, {"per_channel": False}):
        assert calibrated(path, **options).scales
    assert path.read_bytes() == content


def test_a_stale_cache_of_another_model_is_refused(tmp_path: Path) -> None:
    calibrated(tmp_path / "scales.json")
    changed = tiny_models.conv("N")
    changed.graph.initializer[0].raw_data = bytes(len(changed.graph.initializer[0].raw_data))
    refused("for another model: it says .*delete that file", tmp_path / "scales.json", model=changed)


def test_a_stale_cache_of_other_data_is_refused(tmp_path: Path) -> None:
    calibrated(tmp_path / "scales.json")
    refused("for other samples", tmp_path / "scales.json", samples={"x": SAMPLES["x"][:4]})


def test_a_stale_cache_of_another_calibrator_is_refused(tmp_path: Path) -> None:
    calibrated(tmp_path / "scales.json", calibrator="percentile")
    said = "for another calibrator: it says 'percentile 99.9', and this is 'mse'"
    refused(said, tmp_path / "scales.json", calibrator="mse")
    refused("this is 'percentile 99'", tmp_path / "scales.json", calibrator="percentile", percent=99)


@pytest.mark.parametrize("content", ["hello", "", "[1, 2]", '{"scales": {"x": 1.0}}', "TRT-8601-EntropyCalibration2\n"])
def test_a_foreign_file_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    refused("not a calibration cache of this package, and is left as it is", path)


def test_a_cut_or_damaged_cache_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scales.json"
    calibrated(path)
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    refused("not a calibration cache", path)
    for wrong in (-1.0, "much", float("nan")):
        content = json.loads(whole)
        content["scales"]["x"] = wrong
        path.write_text(json.dumps(content))
        refused("scales in .* are damaged", path)
    content["scales"] = {"other": 1.0}
    path.write_text(json.dumps(content))
    refused("'x', read by node 'conv1' .* no scale", path)


def test_a_folder_that_cannot_be_written_is_named_before_calibrating(tmp_path: Path) -> None:
    def never() -> dict[str, float]:
        raise AssertionError("calibrated in vain")

    wanted = {"model": "m", "samples": "s", "calibrator": "entropy"}
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "no" / "scales.json", tmp_path / "file" / "scales.json", Path("/proc/scales.json")):
        with pytest.raises(lab.AssetError, match="cannot be written"):
            cached_scales(path, wanted, never)
    refused("cannot be read", tmp_path)


def test_of_two_who_calibrate_at_once_the_first_to_write_is_believed_by_both(tmp_path: Path) -> None:
    path, wanted = tmp_path / "scales.json", {"model": "m", "samples": "s", "calibrator": "entropy"}

    def overtaken() -> dict[str, float]:
        cached_scales(path, wanted, lambda: {"x": 1.0})
        return {"x": 2.0}

    assert cached_scales(path, wanted, overtaken) == {"x": 1.0}
    assert [file.name for file in tmp_path.iterdir()] == ["scales.json"]


def test_the_file_can_be_read_by_people(tmp_path: Path) -> None:
    scales = calibrated(tmp_path / "scales.json").scales
    content = json.loads((tmp_path / "scales.json").read_text())
    assert content["calibrator"] == "entropy"
    assert content["scales"]["relu1"] == pytest.approx(scales["relu1"])


def test_a_cache_of_tensorrt_10_gives_its_scales_to_quantize(tmp_path: Path) -> None:
    path = tmp_path / "calibration.cache"
    wanted = {"x": 0.02, "relu1": 0.03, "name: with a colon": 1.0, "flat": 0.01}
    lines = [f"{name}: {struct.pack('>f', scale).hex().lstrip('0')}" for name, scale in wanted.items()]
    path.write_text("\n".join(["TRT-8601-EntropyCalibration2", *lines, ""]))
    scales = read_tensorrt_cache(path)
    assert scales == pytest.approx(wanted)
    quantized = quantize(tiny_models.conv("N"), None, scales=scales, base="fp32")
    assert quantized.scales == pytest.approx({name: wanted[name] for name in ("x", "relu1", "flat")})


@pytest.mark.parametrize("content", ["", "hello", "TRT-8601-EntropyCalibration2\nx: nonsense", "TRT-1\nx: 3c010a14ff"])
def test_another_text_is_no_cache_of_tensorrt(tmp_path: Path, content: str) -> None:
    (tmp_path / "calibration.cache").write_text(content)
    with pytest.raises(lab.AssetError, match="not a calibration cache of TensorRT"):
        read_tensorrt_cache(tmp_path / "calibration.cache")
    with pytest.raises(lab.AssetError, match="cannot be read"):
        read_tensorrt_cache(tmp_path / "nothing")
