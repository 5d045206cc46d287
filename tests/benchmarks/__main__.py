"""Measure what the course promises about speed and memory: python tests/benchmarks (make benchmarks).

Every row is a figure of this machine, now: the median of several runs, the range, and the target beside it.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

import trtlab as lab
from trtlab.building import build_each
from trtlab.buildlog import read_build_log

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "notebooks")]

if TYPE_CHECKING:
    import numpy as np

PLAIN_SCRIPT = """
import sys, time
import tensorrt_rtx as trt
class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, message):
        pass
logger = Logger()
builder = trt.Builder(logger)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
start = time.perf_counter()
assert parser.parse(open(sys.argv[1], "rb").read())
config = builder.create_builder_config()
config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM89, 0)
profile = builder.create_optimization_profile()
profile.set_shape("x", *[(1, 3, 224, 224)] * 3)
config.add_optimization_profile(profile)
assert builder.build_serialized_network(network, config)
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Row:
    """One promise: its figures in `unit`, and the most it may be."""

    name: str
    figures: list[float]
    target: float
    unit: str = "s"

    def __str__(self) -> str:
        low, middle, high = min(self.figures), statistics.median(self.figures), max(self.figures)
        least, found, most = (f"{figure:,.{2 if self.unit else 0}f}" for figure in (low, middle, high))
        target, verdict = f"<= {self.target:,g} {self.unit}", "met" if middle <= self.target else "MISSED"
        return f"| {self.name} | {target} | {found} {self.unit} | {least} … {most} | {len(self.figures)} | {verdict} |"


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def python(*arguments: str) -> str:
    """What a fresh Python prints."""
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout


def house() -> list[Row]:
    """The size of the package and the directions of its imports, as tests/test_house.py counts them."""
    import test_house as house

    alone = set(house.used_by_one_chapter()) - set(house.INTERFACES.split())
    circle, up = (sum(bool(wrong(path)) for path in house.INSIDE) for wrong in (house.in_a_circle, house.climbing))
    return [
        Row("lines of trtlab", [house.lines(*house.TEXTS)], 7500, ""),
        Row("lines of the chapters' modules", [house.lines(*house.COMPANIONS)], 6000, ""),
        Row("lines of the tests", [house.lines(*house.TESTS.rglob("*.py"))], 12_000, ""),
        Row("files of trtlab", [len(house.TEXTS)], 90, ""),
        Row("files of trtlab in an import circle", [circle], 0, ""),
        Row("files of trtlab that import from a floor above", [up], 0, ""),
        Row("names of trtlab that one chapter alone uses", [len(alone)], 0, ""),
    ]


def importing() -> Row:
    """`import trtlab` over bare Python, each in a process of its own."""
    figures = [seconds(lambda: python("-c", "import trtlab")) - seconds(lambda: python("-c", "")) for _ in range(9)]
    return Row("import trtlab, over bare Python", figures, 0.25)


def building(path: Path) -> list[Row]:
    """ResNet-50: build() cold against the plain calls of chapter 00 in a script, and from the cache."""
    shapes = {"x": (1, 3, 224, 224)}
    over = []
    for _ in range(5):
        plain = float(python("-c", PLAIN_SCRIPT, str(path)))
        over.append(seconds(lambda: lab.build(path, shapes=shapes, cache=False, progress=False)) - plain)
    lab.build(path, shapes=shapes, progress=False)
    cached = [seconds(lambda: lab.build(path, shapes=shapes, progress=False)) for _ in range(9)]
    return [
        Row("build() of ResNet-50, cold, over TensorRT's own time", over, 1.0),
        Row("build() of ResNet-50 from the cache", cached, 0.1),
    ]


def comparing(path: Path) -> list[Row]:
    """Whole process against whole process: a script that builds ResNet-50 with lab.build(), and the plain script."""
    code = "import sys, trtlab as lab; lab.build(sys.argv[1], shapes={'x': (1, 3, 224, 224)}, cache=False)"
    pairs = [(_cost("-c", code, str(path)), _cost("-c", PLAIN_SCRIPT, str(path))) for _ in range(9)]
    wall, processor = ([ours[kind] / plain[kind] for ours, plain in pairs] for kind in (0, 1))
    return [
        Row("script with build() of ResNet-50, its time over the plain script's", wall, 1.4, "times"),
        Row("script with build() of ResNet-50, its processor time over the plain script's", processor, 1.6, "times"),
    ]


def _cost(*arguments: str) -> tuple[float, float]:
    """(wall, processor) seconds of a Python process and of the processes it waited for."""
    before = os.times()
    python(*arguments)
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return after.elapsed - before.elapsed, processor


def remembering(path: Path) -> Row:
    """The most memory that a process building ResNet-50 and its compiler process take together."""
    code = "import sys, trtlab; trtlab.build(sys.argv[1], shapes={'x': (1, 3, 224, 224)}, cache=False, progress=False)"
    figures = [peak_gib(subprocess.Popen([sys.executable, "-c", code, str(path)]), every=0.01) for _ in range(3)]
    return Row("build() of ResNet-50, cold: peak memory of both processes", figures, 4, "GiB")


def reading() -> Row:
    """The log of a 12-layer transformer encoder, read into an Engine."""
    path = lab.models.transformer_encoder(layers=12).onnx()
    engine = lab.build(path, shapes={"input_ids": (1, 128)}, progress=False)
    messages = [part.partition("] ")[2] for part in ("\n" + engine.log).split("\n[")[1:]]
    assert len(read_build_log(messages).kernels) == len(engine.kernels)
    figures = [seconds(lambda: read_build_log(messages)) for _ in range(9)]
    return Row("reading a 12-layer transformer's log", figures, 0.1)


def changing() -> Row:
    """The widget of chapter 00: from a change of the batch to the picture as PNG, nothing cached."""
    import chapter00

    network = lab.models.efficientnet_lite0()
    draw = partial(chapter00.compiled_picture, network, "RTX 3090")
    figures = [seconds(lambda batch=batch: draw(batch).png()) for batch in (3, 5, 6, 7, 9)]
    return Row("widget, change to picture, EfficientNet-Lite0", figures, 1.5)


def sweeping(path: Path) -> Row:
    """Eight shapes of ResNet-50, built two at a time, nothing cached."""
    eights = [[{"x": (start + more, 3, 224, 224)} for more in range(8)] for start in (1, 100, 200)]
    figures = [seconds(partial(build_each, path, shapes, "RTX 3090")) for shapes in eights]
    return Row("sweep of 8 shapes of ResNet-50", figures, 8)


def calibrating() -> Row:
    """The entropy search against ONNX Runtime's on real tensors, all nine of the digit CNN and ten of Lite0's fifty."""
    photos = lab.models.efficientnet_lite0()
    digits = {"x": lab.datasets.digits("train").images[:512]}
    pairs = [*_searches(lab.models.digit_cnn().onnx(), digits, 1), *_searches(photos.onnx(), photos.sample(4), 5)]
    ours, theirs = map(sum, zip(*pairs, strict=True))
    return Row("entropy at 2,048 bins, its time over ONNX Runtime's", [ours / theirs], 0.33, "times")


def _searches(model: Path, samples: dict[str, np.ndarray], step: int) -> list[tuple[float, float]]:
    """Seconds here and on ONNX Runtime, for every `step`-th tensor that INT8 needs a scale of."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    from trtlab.precision.calibration import histogram

    names = list(lab.precision.quantize(model, samples, calibrator="minmax", base="fp32", residual=False).scales)
    found = []
    for array in lab.numerics.run(model, samples, outputs=names[::step]).values():
        counted = histogram(array)
        collector = HistogramCollector("entropy", True, 2048, 128, 99.9, "same")
        with contextlib.redirect_stdout(io.StringIO()):
            collector.collect({"t": array})
            here = seconds(lambda counted=counted: lab.precision.threshold(counted, "entropy"))
            found.append((here, seconds(collector.compute_collection_result)))
    return found


CALIBRATE = """
import sys, numpy as np, trtlab as lab
images, count = lab.datasets.digits("train").images, int(sys.argv[1])
def batches():
    for start in range(0, count, 100):
        yield {"x": images[np.arange(start, start + 100) % len(images)]}
lab.precision.quantize(lab.models.digit_cnn().onnx(), batches)
# Not getrusage: a child's ru_maxrss starts at what its parent had.
print(next(int(line.split()[1]) / 1024 for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""


def calibrating_much() -> Row:
    """The most memory that a process takes to quantise the digit CNN with 5,000 digits, over that with 500."""
    figures = [float(python("-c", CALIBRATE, "5000")) - float(python("-c", CALIBRATE, "500")) for _ in range(3)]
    return Row("calibrating 5,000 digits, peak memory over 500", figures, 200, "MiB")


def chapters() -> list[Row]:
    """Every notebook as a new reader runs it, with empty caches, and the most memory that it and its children took."""
    rows, folder = [], ROOT / "notebooks"
    for path in sorted(folder.glob("[0-9]*.ipynb")):
        with tempfile.TemporaryDirectory() as new:
            command = [sys.executable, str(folder / "execute.py"), shutil.copy(path, new)]
            environment = {**os.environ, "TRTLAB_CACHE": new, "PYTHONPATH": str(folder)}
            start, quiet = time.perf_counter(), subprocess.DEVNULL
            run = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)
            peak = peak_gib(run)
            assert run.returncode == 0, f"{path.name} failed"
            rows.append(Row(f"{path.stem}: Run All, nothing cached", [time.perf_counter() - start], 60))
            rows.append(Row(f"{path.stem}: peak memory of all its processes", [peak], 4, "GiB"))
    return rows


def peak_gib(run: subprocess.Popen[bytes], every: float = 0.1) -> float:
    """The largest sum of resident memory of a process and its children until it ends, looked at `every` … seconds."""
    peak = 0
    while run.poll() is None:
        with contextlib.suppress(psutil.Error):
            tree = psutil.Process(run.pid)
            peak = max(peak, sum(process.memory_info().rss for process in [tree, *tree.children(recursive=True)]))
        time.sleep(every)
    return peak / 2**30


def main() -> int:
    """Print the table; the exit status does not depend on it."""
    machine = lab.doctor()
    print(f"{machine.cpu}, {machine.cores} cores, Python {machine.python}, {lab.trt.__name__} {lab.trt.__version__}\n")
    print("| what | target | median | range | runs | |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as new:
        os.environ["TRTLAB_CACHE"] = new
        resnet = lab.models.resnet50().onnx()
        lab.models.efficientnet_lite0().onnx()
        network = [partial(rows, resnet) for rows in (building, comparing, remembering, sweeping)]
        for rows in (house, importing, *network, reading, changing, calibrating, calibrating_much):
            found = rows()
            for row in found if isinstance(found, list) else [found]:
                print(row, flush=True)
    for row in chapters():
        print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
