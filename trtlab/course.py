"""What is in the course? The list of chapters that the doctor and the tables of both READMEs agree on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chapter:
    """One notebook: `uses` names what it needs of a machine (compile, numerics, timings); `ready`: it is written."""

    number: int
    name: str
    title: str
    uses: tuple[str, ...]
    ready: bool = False

    @property
    def file(self) -> str:
        """The notebook's name in notebooks/."""
        return f"{self.number:02d}_{self.name}.ipynb"


_BUILD = ("compile",)
_COMPUTE = ("compile", "numerics")
_TIME = ("compile", "numerics", "timings")

CHAPTERS = (
    Chapter(0, "start_here", "Start here", _COMPUTE, ready=True),
    Chapter(1, "pytorch_to_onnx", "From PyTorch to ONNX", _COMPUTE, ready=True),
    Chapter(2, "graph_optimization", "Graph optimization", _BUILD, ready=True),
    Chapter(3, "builder_runtime_context", "Builder, runtime, context", _BUILD, ready=True),
    Chapter(4, "fp16_bf16", "FP16 and BF16", _TIME, ready=True),
    Chapter(5, "int8_calibration", "INT8 calibration", _TIME, ready=True),
    Chapter(6, "dynamic_shapes", "Dynamic shapes", _COMPUTE, ready=True),
    Chapter(7, "memory", "Memory", _BUILD, ready=True),
    Chapter(8, "performance", "Performance", _TIME),
    Chapter(9, "troubleshooting", "Troubleshooting", _COMPUTE, ready=True),
    Chapter(10, "resnet_efficientnet", "From ResNet-50 to EfficientNet", _TIME),
    Chapter(11, "yolo", "YOLO", _TIME),
    Chapter(12, "bert", "BERT", _TIME),
    Chapter(13, "gpt", "GPT", _TIME),
    Chapter(14, "recommender", "Recommender", _TIME),
    Chapter(15, "plugins", "Plugins", _BUILD),
    Chapter(16, "deployment", "Deployment", _BUILD),
    Chapter(17, "your_own_model", "Your own model", _TIME),
)
