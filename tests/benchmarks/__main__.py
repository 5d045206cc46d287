"""Measure what the course promises about speed and memory: python tests/benchmarks (make benchmarks).

Every row is a figure of this machine, now: the median of several runs, the range, and the target beside it.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

import trtlab as lab
from trtlab.buildlog import read_build_log

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
        middle = statistics.median(self.figures)
        spread = f"{min(self.figures):.2f} … {max(self.figures):.2f}"
        verdict = "met" if middle <= self.target else "MISSED"
        target = f"<= {self.target:g} {self.unit}"
        return f"| {self.name} | {target} | {middle:.2f} {self.unit} | {spread} | {len(self.figures)} | {verdict} |"


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def python(*arguments: str) -> str:
    """What a fresh Python prints."""
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout


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
    return Row(
        "reading a 12-layer transformer's log", [seconds(lambda: read_build_log(messages)) for _ in range(9)], 0.1
    )


def changing() -> Row:
    """The widget of chapter 00: from a change of the batch to the picture as PNG, nothing cached."""
    network = lab.models.efficientnet_lite0()
    figures = [
        seconds(lambda batch=batch: lab.widgets.compiled_picture(network, "RTX 3090", batch).png())
        for batch in (3, 5, 6, 7, 9)
    ]
    return Row("widget, change to picture, EfficientNet-Lite0", figures, 1.5)


def chapters() -> list[Row]:
    """Every notebook as a new reader runs it, with empty caches, and the most memory that it and its children took."""
    rows = []
    folder = Path(__file__).parents[2] / "notebooks"
    for path in sorted(folder.glob("[0-9]*.ipynb")):
        with tempfile.TemporaryDirectory() as new:
            copy = Path(new) / path.name
            copy.write_bytes(path.read_bytes())
            start = time.perf_counter()
            run = subprocess.Popen(
                [sys.executable, str(folder / "execute.py"), str(copy)],
                env={**os.environ, "TRTLAB_CACHE": new},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
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
        for rows in (importing, lambda: building(resnet), lambda: remembering(resnet), reading, changing):
            found = rows()
            for row in found if isinstance(found, list) else [found]:
                print(row, flush=True)
    for row in chapters():
        print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
