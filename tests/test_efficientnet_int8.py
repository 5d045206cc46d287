"""The measured INT8 recipes of EfficientNet-Lite0 in data/: what they claim, and that they can be made again."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pandas as pd
import pytest
from conftest import script_of

import trtlab as lab
from trtlab import datasets, models, numerics, precision
from trtlab.files import data_file

FOLDER = Path(__file__).resolve().parent.parent / "data" / "efficientnet_lite0"
BEST = "MSE, the worst 8 in FP16"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return script_of(FOLDER / "int8.py")


def table(name: str, key: str) -> pd.DataFrame:
    return pd.read_csv(data_file(f"efficientnet_lite0/{name}.csv"), keep_default_na=False).set_index(key)


def test_the_best_recipe_keeps_what_was_asked_for() -> None:
    recipes = table("recipes", "recipe")
    best = recipes.loc[BEST]
    assert best["cosine"] >= 0.98
    assert best["cosine_worst_photo"] >= 0.98
    assert best["int8_percent"] >= 80
    assert best["photos"] == 20
    assert best["same_top1"] >= 19
    assert recipes.loc["FP16", "cosine"] >= 0.999
    assert recipes.loc["FP16", "weights_mb"] == pytest.approx(recipes.loc["FP32", "weights_mb"] / 2, rel=0.02)


def test_the_best_recipe_was_not_chosen_on_the_held_out_photos() -> None:
    candidates = table("recipes", "recipe").query("int8_percent >= 80 and not recipe.str.contains('biases')")
    assert candidates["cosine_seen"].idxmax() == BEST


def test_every_recipe_of_the_script_was_measured(script: ModuleType) -> None:
    assert list(table("recipes", "recipe").index) == ["FP32", "FP16", *(recipe.name for recipe in script.RECIPES)]
    assert list(table("kept", "kept").index) == list(script.KEPT)
    assert len(table("sensitivity", "node")) == 50


def test_no_photo_of_the_held_out_package_is_in_the_repository() -> None:
    package = Path(importlib.util.find_spec("foolbox").submodule_search_locations[0])  # type: ignore[union-attr,index]
    theirs = {photo.read_bytes() for photo in (package / "data").glob("imagenet_*.jpg")}
    assert len(theirs) == 20
    kinds = (".jpg", ".jpeg", ".png", ".npz", ".npy")
    ours = [path for path in FOLDER.parent.rglob("*") if path.suffix in kinds]
    assert not any(path.read_bytes() in theirs for path in ours)


@pytest.mark.deep
def test_the_best_recipe_can_be_made_again(script: ModuleType, cache: Path) -> None:
    bench = script.Bench()
    ranking = list(table("sensitivity", "node").index)
    recipe = next(recipe for recipe in script.RECIPES if recipe.name == BEST)
    made, kept = script.measure(bench, recipe, ranking), table("recipes", "recipe").loc[recipe.name]
    assert made["int8_nodes"] == kept["int8_nodes"]
    assert made["int8_percent"] == kept["int8_percent"]
    assert made["weights_mb"] == pytest.approx(kept["weights_mb"], abs=0.05)
    assert made["cosine"] == pytest.approx(kept["cosine"], abs=2e-3)
    assert abs(made["same_top1_of_views"] - kept["same_top1_of_views"]) <= 2


@pytest.mark.deep
def test_the_worst_nodes_can_be_found_again(script: ModuleType) -> None:
    kept = table("sensitivity", "node")
    bench = script.Bench()
    quantized = bench.quantized(script.RECIPES[5], [], "fp32")  # min-max on 8 cut-outs: close to MSE, and quick
    some = (kept.index[0], kept.index[25], kept.index[-1])
    again = precision.sensitivity(bench.model, {"x": bench.seen[:10]}, replace(quantized, quantized=some)).set_index(
        "node"
    )
    assert list(again.index) == list(some)
    for node in some:
        assert again.loc[node, "sqnr_db"] == pytest.approx(kept.loc[node, "sqnr_db"], abs=4)
        assert again.loc[node, "share"] == pytest.approx(kept.loc[node, "share"], abs=1e-4)


def test_leaving_the_worst_node_in_fp32_gives_the_accuracy_back(script: ModuleType, cache: Path) -> None:
    """On the digit CNN, with a scale 60 times too small at one node, as a bad calibration would give it."""
    model, spoiled = onnx.load(models.digit_cnn().onnx()), "block2.first.conv/Conv"
    test = datasets.digits("test")
    some = datasets.Dataset(test.images[:100], test.labels[:100])
    scales = precision.calibrate(model, {"x": datasets.digits("train").images[:50]}, "minmax")
    scales[next(node.input[0] for node in model.graph.node if node.name == spoiled)] /= 60
    quantized = precision.quantize(model, None, residual=False, scales=scales)
    whole, without = (script.keep_worst(model, some, quantized, worst, "SM89") for worst in ([], [spoiled]))
    assert whole["right"] < 75
    assert without["right"] >= 98
    assert (whole["kept"], without["kept"], without["count"]) == (0, 1, 100)
    assert (whole["int8_percent"], without["int8_percent"]) == pytest.approx((100, 100 - 17.58), abs=0.01)


def test_an_interrupted_run_goes_on_where_it_stopped(script: ModuleType, tmp_path: Path) -> None:
    made: list[str] = []

    def row(name: str) -> dict[str, object]:
        if name == "b" and made == ["a"]:
            made.append("interrupted")
            raise KeyboardInterrupt
        made.append(name)
        return {"recipe": name, "cosine": 1.0}

    def rows() -> object:
        return ((name, lambda name=name: row(name)) for name in "abc")

    path = tmp_path / "recipes.csv"
    with pytest.raises(KeyboardInterrupt):
        script.add_rows(path, "recipe", rows())
    assert pd.read_csv(path)["recipe"].tolist() == ["a"]
    script.add_rows(path, "recipe", rows())
    assert pd.read_csv(path)["recipe"].tolist() == ["a", "b", "c"]
    assert made == ["a", "interrupted", "b", "c"]


@pytest.mark.deep
def test_the_reference_row_is_the_models_own_score(script: ModuleType) -> None:
    data = script.imagenet_photos()
    logits = numerics.run(models.efficientnet_lite0().onnx(), {"x": data.images})["logits"]
    assert int((np.argmax(logits, 1) == data.labels).sum()) == table("recipes", "recipe").loc["FP32", "right"]


def test_calibration_photos_are_the_same_on_every_call_and_others_with_another_seed(script: ModuleType) -> None:
    first = script.calibration_photos(10)
    assert first.shape == (10, 3, 224, 224)
    assert np.array_equal(first[:5], script.calibration_photos(5))
    assert len({image.tobytes() for image in first}) == 10
    assert not np.array_equal(first, script.calibration_photos(10, seed=1))


def test_no_photo_is_both_calibrated_with_and_held_out(script: ModuleType) -> None:
    def thumbnails(images: list[np.ndarray]) -> np.ndarray:
        small = np.concatenate(images).reshape(-1, 3, 16, 14, 16, 14).mean(axis=(3, 5))
        return small.reshape(len(small), -1)

    shown = {name: datasets.imagenet_input(photo) for name, photo in datasets.photos().items()}
    sources = thumbnails([datasets.imagenet_input(photo) for photo in script.calibration_sources()])
    views = script.held_out_views(3)
    assert len({image.tobytes() for image in views.images}) == len(views) == 60
    held_out = [script.imagenet_photos().images, *(shown[name] for name in datasets.PHOTO_LABELS)]
    alike = np.corrcoef(sources, thumbnails(held_out))[:5, 5:]
    assert alike.shape == (5, 22)
    assert alike.max() < 0.9
    mirrored = thumbnails([shown["astronaut"][..., ::-1]])[0].reshape(3, 16, 16)[..., ::-1]
    assert np.corrcoef(sources, mirrored.reshape(1, -1))[:5, 5].max() > 0.99  # the same photo would have been found


def test_labelled_photos_come_as_a_network_wants_them(script: ModuleType) -> None:
    data = script.imagenet_photos()
    assert data.images.shape == (20, 3, 224, 224)
    assert data.images.dtype == np.float32
    assert -1 <= data.images.min() < -0.9
    assert 0.9 < data.images.max() <= 1
    assert data.labels.dtype == np.int64
    assert len(data) == 20
    assert datasets.imagenet_classes()[data.labels[0]] == "bull mastiff"
    assert "foolbox" not in sys.modules, "its files are read without importing it"


def test_a_missing_photo_package_names_the_pip_line(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(lab.AssetError, match="pip install foolbox"):
        script.imagenet_photos()


def test_an_incomplete_photo_package_is_refused(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "foolbox"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(lab.AssetError, match="holds 0 ImageNet photos, not 20"):
        script.imagenet_photos()
    for index in range(20):
        (package / "data" / f"imagenet_{index:02d}_1.jpg").write_bytes(b"no picture")
    with pytest.raises(lab.AssetError, match=r"'imagenet_00_1\.jpg' is missing from its package"):
        script.imagenet_photos()
