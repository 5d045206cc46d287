"""Which INT8 recipe suits EfficientNet-Lite0? `python data/efficientnet_lite0/int8.py`, 7 minutes of processor time.

Calibrated with cut-outs of five photographs, judged on 20 others with labels. Writes sensitivity.csv,
kept.csv and recipes.csv into -o (default: this folder), a row as soon as it is measured; rows that are there stay, so
that an interrupted run goes on where it stopped. --overwrite starts anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd

import trtlab as lab
from trtlab import datasets, models, numerics, precision
from trtlab.files import write_atomically
from trtlab.numerics.running import batches

GPU = "SM89"
SHAPES = {"x": ((1, 3, 224, 224), (8, 3, 224, 224), (8, 3, 224, 224))}
IMAGES = 128
WORST = 8  # the most that leaves 80% of the multiply-adds in INT8: see kept.csv
KEPT = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 36)


@dataclass(frozen=True)
class Recipe:
    """What `quantize` is told, and which nodes are left in FP16: a group of their names, or the worst so many."""

    name: str
    calibrator: str = "mse"
    images: int = IMAGES
    percent: float = 99.9
    per_channel: bool = True
    residual: bool = True
    in_fp16: str = ""
    worst: int = 0
    corrected: bool = False


_MSE = Recipe("MSE")
RECIPES = (
    Recipe("min-max", "minmax"),
    Recipe("entropy", "entropy"),
    Recipe("percentile 99.9", "percentile"),
    Recipe("percentile 99.99", "percentile", percent=99.99),
    _MSE,
    Recipe("min-max, 8 cut-outs", "minmax", images=8),
    Recipe("min-max, 32 cut-outs", "minmax", images=32),
    Recipe("min-max, one scale a weight tensor", "minmax", per_channel=False),
    Recipe("MSE, residual sums not quantized", residual=False),
    Recipe("MSE, head in FP16", in_fp16="conv_head fc"),
    Recipe("MSE, stem in FP16", in_fp16="conv_stem"),
    Recipe("MSE, depthwise in FP16", in_fp16="depthwise"),
    Recipe("MSE, depthwise and stem in FP16", in_fp16="depthwise conv_stem"),
    Recipe(f"min-max, the worst {WORST} in FP16", "minmax", worst=WORST),
    Recipe(f"MSE, the worst {WORST} in FP16", worst=WORST),
    Recipe("MSE, biases corrected", corrected=True),
    Recipe(f"MSE, the worst {WORST} in FP16, biases corrected", worst=WORST, corrected=True),
)


SOURCES = (  # none of them is held out
    ("sklearn", "scikit-learn", "datasets/images/china.jpg"),
    ("sklearn", "scikit-learn", "datasets/images/flower.jpg"),
    ("matplotlib", "matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)


def calibration_photos(count: int = IMAGES, seed: int = 0) -> np.ndarray:
    """`count` random cut-outs of five photographs that take turns, float32 (count, 3, 224, 224)."""
    return np.concatenate(_cutouts(calibration_sources(), count, seed))


def calibration_sources() -> list[np.ndarray]:
    """The photographs to calibrate with, uint8 (H, W, 3)."""
    shown = datasets.photos()
    files = [datasets.package_folder(package, distribution) / path for package, distribution, path in SOURCES]
    return [shown["astronaut"], shown["rocket"], *map(datasets.read_photo, files)]


def imagenet_photos() -> datasets.Dataset:
    """The 20 labelled ImageNet photos inside foolbox: images float32 (20, 3, 224, 224), held out from calibration.

    Do not show them: their rights are their photographers'. Raises AssetError when foolbox is missing or incomplete.
    """
    files = sorted((datasets.package_folder("foolbox", "foolbox") / "data").glob("imagenet_*.jpg"))
    if len(files) != 20:
        fix = "run 'pip install --force-reinstall --no-deps foolbox', or 'make lab' for its pinned version."
        raise lab.AssetError(f"The package foolbox holds {len(files)} ImageNet photos, not 20.", fix=fix)
    inputs = [datasets.imagenet_input(datasets.read_photo(file)) for file in files]
    labels = [int(file.stem.rpartition("_")[2]) for file in files]  # imagenet_00_243.jpg is of class 243
    return datasets.Dataset(np.concatenate(inputs), np.array(labels, np.int64))


def held_out_views(views: int) -> datasets.Dataset:
    """The labelled photos whole, and then `views` - 1 times as random cut-outs: more evidence, not more photos."""
    whole, folder = imagenet_photos(), datasets.package_folder("foolbox", "foolbox") / "data"
    photos = [datasets.read_photo(file) for file in sorted(folder.glob("imagenet_*.jpg"))]
    cutouts = _cutouts(photos, (views - 1) * len(photos), seed=0)
    return datasets.Dataset(np.concatenate([whole.images, *cutouts]), np.tile(whole.labels, views))


def _cutouts(sources: list[np.ndarray], count: int, seed: int) -> list[np.ndarray]:
    """`count` inputs made of random squares of `sources` in turn: half to all of the shorter side, some mirrored."""
    random, found = np.random.default_rng(seed), []
    for index in range(count):
        photo = sources[index % len(sources)]
        height, width, _ = photo.shape
        side = int(min(height, width) * random.uniform(0.5, 1))
        top, left = random.integers(height - side + 1), random.integers(width - side + 1)
        square = photo[top : top + side, left : left + side]
        found.append(datasets.imagenet_input(square[:, ::-1] if random.random() < 0.5 else square))
    return found


class Bench:
    """The network, the pictures, and what several recipes share."""

    def __init__(self) -> None:
        self.model = onnx.load(models.efficientnet_lite0().onnx())
        self.held_out = held_out_views(3)
        self.seen = calibration_photos(20, seed=1)  # other cut-outs of the photographs calibrated with
        self.scales = cache(self._scales)

    @cached_property
    def right(self) -> np.ndarray:
        """FP32's logits for the held-out pictures."""
        return logits(self.model, self.held_out.images)

    @cached_property
    def right_seen(self) -> np.ndarray:
        """FP32's logits for the pictures of the photographs calibrated with."""
        return logits(self.model, self.seen)

    @cached_property
    def histograms(self) -> dict[str, precision.Histogram]:
        """Every tensor's values over the calibration pictures, counted once for all calibrators."""
        names = list(self.scales("minmax", IMAGES, 0.0))
        return precision.histograms(self.model, {"x": calibration_photos(IMAGES)}, names)

    def _scales(self, calibrator: str, images: int, percent: float) -> dict[str, float]:
        if calibrator == "minmax":
            return precision.calibrate(self.model, {"x": calibration_photos(images)}, "minmax")
        kind: Any = calibrator
        found = self.histograms.items()
        return {name: precision.threshold(counts, kind, percent=percent) / 127 for name, counts in found}

    def quantized(self, recipe: Recipe, ranking: list[str], base: Any = "fp16") -> precision.Quantized:
        """The recipe carried out."""
        products = [node.name for node in self.model.graph.node if node.op_type in ("Conv", "Gemm")]
        left = [name for name in products if any(part in name for part in recipe.in_fp16.split())]
        return precision.quantize(
            corrected(self, recipe, ranking) if recipe.corrected else self.model,
            None,
            per_channel=recipe.per_channel,
            base=base,
            residual=recipe.residual,
            exclude=[*left, *ranking[: recipe.worst]],
            scales=self.scales(recipe.calibrator, recipe.images, recipe.percent),
        )


def corrected(bench: Bench, recipe: Recipe, ranking: list[str]) -> onnx.ModelProto:
    """The network with its biases moved so that quantization shifts no channel's mean, node after node.

    Bias correction of Nagel et al. 2019, arXiv:1906.04721, in its empirical form, on 20 calibration pictures.
    """
    samples = {"x": calibration_photos(20)}
    plain = Recipe(**{**vars(recipe), "corrected": False})
    model = onnx.ModelProto()
    model.CopyFrom(bench.model)
    rounded = bench.quantized(plain, ranking, "fp32").model
    products = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    wanted = means(bench.model, samples, [node.output[0] for node in products])
    for node in products:
        shift = wanted[node.output[0]] - means(rounded, samples, [node.output[0]])[node.output[0]]
        for graph in (model.graph, rounded.graph):
            bias = next(tensor for tensor in graph.initializer if tensor.name == node.input[2])
            moved = onnx.numpy_helper.to_array(bias) + shift.astype(np.float32)
            bias.CopyFrom(onnx.numpy_helper.from_array(moved, bias.name))
    return model


def means(model: onnx.ModelProto, samples: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """The mean of each channel of the tensors (N, C, …)."""
    sums: dict[str, list[np.ndarray]] = {name: [] for name in names}
    compute = numerics.runner(model, names)
    for feed in batches(samples, model, 5):
        for name, array in compute(feed).items():
            sums[name].append(array.mean(axis=(0, *range(2, array.ndim))))
    return {name: np.mean(parts, axis=0) for name, parts in sums.items()}


def logits(model: Any, images: np.ndarray, true_half: bool = False) -> np.ndarray:
    """The network's output; ONNX Runtime computes FP16 in FP32, so FP16 alone is judged in true half precision."""
    return numerics.run(model, {"x": images}, outputs=["logits"], batch=20, true_half=true_half)["logits"]


def measure(bench: Bench, recipe: Recipe, ranking: list[str]) -> dict[str, Any]:
    """Carry the recipe out, compile it and compare its logits with FP32's."""
    quantized = bench.quantized(recipe, ranking)
    engine = lab.build(quantized.model, gpu=GPU, shapes=SHAPES, progress=False)
    return {
        "recipe": recipe.name,
        "calibrator": recipe.calibrator,
        "cut_outs": recipe.images,
        "int8_nodes": len(quantized.quantized),
        "int8_percent": round(100 * precision.precision_share(engine, quantized.model, "int8"), 2),
        "kernels": len(engine.kernels),
        "weights_mb": round((engine.weight_bytes or 0) / 1e6, 2),
        **scores(bench, quantized.model),
    }


def scores(bench: Bench, model: Any, true_half: bool = False) -> dict[str, Any]:
    """The logits against FP32's: on the 20 held-out photos, on 60 views of them, and on the calibration photographs."""
    result = logits(model, bench.held_out.images, true_half)
    count = len(bench.held_out) // 3
    whole, whole_right = result[:count], bench.right[:count]
    each = [numerics.cosine(a, b) for a, b in zip(whole_right, whole, strict=True)]
    return {
        "cosine": round(numerics.cosine(whole_right, whole), 5),
        "cosine_worst_photo": round(min(each), 5),
        "sqnr_db": round(numerics.sqnr(whole_right, whole), 2),
        "same_top1": int((whole.argmax(1) == whole_right.argmax(1)).sum()),
        "right": int((whole.argmax(1) == bench.held_out.labels[:count]).sum()),
        "photos": count,
        "same_top1_of_views": int((result.argmax(1) == bench.right.argmax(1)).sum()),
        "views": len(result),
        "cosine_seen": round(numerics.cosine(bench.right_seen, logits(model, bench.seen, true_half)), 5),
    }


def references(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """FP32 and FP16, to compare with."""
    nothing = {"calibrator": "", "cut_outs": 0, "int8_nodes": 0, "int8_percent": 0.0}

    def row(name: str, model: Any) -> dict[str, Any]:
        engine = lab.build(model, gpu=GPU, shapes=SHAPES, progress=False)
        sizes = {"kernels": len(engine.kernels), "weights_mb": round((engine.weight_bytes or 0) / 1e6, 2)}
        return {"recipe": name, **nothing, **sizes, **scores(bench, model, name == "FP16")}

    yield "FP32", lambda: row("FP32", bench.model)
    samples = {"x": calibration_photos(8)}
    yield "FP16", lambda: row("FP16", precision.to_half(bench.model, "fp16", samples).model)


def add_rows(path: Path, key: str, rows: Iterator[tuple[str, Callable[[], dict[str, Any]]]]) -> None:
    """Measure the rows whose key the file does not hold, and write it after each."""
    there = {str(row[key]): row for row in pd.read_csv(path).to_dict("records")} if path.exists() else {}
    done = []
    for name, make in rows:
        new = name not in there
        done.append(make() if new else there.pop(name))
        if new:
            table = pd.DataFrame([*done, *there.values()])
            write_atomically(path, table.to_csv(index=False, lineterminator="\n"))
            print(f"{path.name}: {name}", flush=True)


def rank(bench: Bench, path: Path) -> list[str]:
    """Every node by what it costs alone, on the photographs calibrated with: the held-out ones choose nothing."""
    if not path.exists():
        table = precision.sensitivity(bench.model, {"x": bench.seen}, bench.quantized(_MSE, [], "fp32"))
        table = table.round({"sqnr_db": 2, "cosine": 6, "share": 5})
        write_atomically(path, table.to_csv(index=False, lineterminator="\n"))
        print(path.name, flush=True)
    return pd.read_csv(path)["node"].tolist()


def kept(bench: Bench, ranking: list[str]) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """The worst k in FP16, on the 20 held-out photos, the share from the engine."""
    whole = imagenet_photos()
    quantized = cache(lambda: bench.quantized(_MSE, []))
    for k in KEPT:
        yield str(k), lambda k=k: keep_worst(bench.model, whole, quantized(), ranking[:k], GPU)


def keep_worst(
    model: onnx.ModelProto, dataset: datasets.Dataset, quantized: precision.Quantized, worst: Sequence[str], gpu: str
) -> dict[str, Any]:
    """What is gained by leaving the nodes `worst` in the base of `quantized`: a row of kept.csv.

    `int8_percent` is of the multiply-adds of the engine compiled for `gpu`; SQNR, cosine and `same_top1` (the samples
    that keep their class) compare the logits with `model`'s; `right` counts the samples that get their label.
    """
    samples = {"x": dataset.images}
    nodes = [node for node in quantized.quantized if node not in worst]
    sums, scales = bool(quantized.sums), quantized.scales
    some = precision.quantize(model, samples, base=quantized.base, nodes=nodes, residual=sums, scales=scales)
    shapes = {"x": (1, *dataset.images.shape[1:])}
    engine = lab.build(some.model, gpu=gpu, shapes=shapes, progress=False)
    share = precision.precision_share(engine, some.model, "int8")
    before, after = (numerics.run(one, samples)["logits"] for one in (model, some.model))
    return {
        "kept": len(worst),
        "int8_percent": round(100 * share, 2),
        "share_from": f"engine for {gpu}",
        "sqnr_db": round(numerics.sqnr(before, after), 2),
        "cosine": round(numerics.cosine(before, after), 6),
        "same_top1": int((before.argmax(1) == after.argmax(1)).sum()),
        "right": numerics.score(after, dataset.labels).right,
        "count": len(dataset),
    }


def main() -> int:
    """Read the command line, measure what is missing, write."""
    parser = argparse.ArgumentParser(description="Measure INT8 recipes for EfficientNet-Lite0.")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).resolve().parent, help="folder to write to")
    parser.add_argument("--overwrite", action="store_true", help="measure everything anew")
    options = parser.parse_args()
    if not options.output.is_dir():
        print(f"There is no folder {options.output}.", file=sys.stderr)
        return 1
    files = [options.output / name for name in ("sensitivity.csv", "kept.csv", "recipes.csv")]
    for path in files if options.overwrite else ():
        path.unlink(missing_ok=True)
    bench = Bench()
    ranking = rank(bench, files[0])
    add_rows(files[1], "kept", kept(bench, ranking))
    recipes = ((recipe.name, lambda recipe=recipe: measure(bench, recipe, ranking)) for recipe in RECIPES)
    add_rows(files[2], "recipe", (row for rows in (references(bench), recipes) for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
