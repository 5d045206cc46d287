"""What is in the course? The list of chapters that the doctor, the README and the map agree on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chapter:
    """One notebook: what it asks, how long it takes to read and run (minutes), and what it needs of the machine.

    `uses` names the abilities it draws on (compile, numerics, timings); `gpu_adds` what a reader with an NVIDIA GPU
    sees more of; `ready` tells that the notebook is written.
    """

    number: int
    name: str
    title: str
    question: str
    minutes: int
    uses: tuple[str, ...]
    gpu_adds: str
    ready: bool = False

    @property
    def file(self) -> str:
        """The notebook's name in notebooks/."""
        return f"{self.number:02d}_{self.name}.ipynb"


_BUILD = ("compile",)
_COMPUTE = ("compile", "numerics")
_TIME = ("compile", "numerics", "timings")

CHAPTERS: tuple[Chapter, ...] = (
    Chapter(0, "start_here", "Start here",
            "What can this machine do, and what does TensorRT make of a trained network?", 15, _COMPUTE,
            "running the engine you built", ready=True),
    Chapter(1, "pytorch_to_onnx", "From PyTorch to ONNX",
            "Which export does TensorRT like: dropout, batch norm, dynamic axes, simplification?", 25, _COMPUTE,
            "nothing: all of it is CPU work", ready=True),
    Chapter(2, "graph_optimization", "Graph optimization",
            "What becomes of each node: folded, dead, fused downwards, fused sideways?", 30, _BUILD,
            "full TensorRT's fusion beside that of TensorRT-RTX", ready=True),
    Chapter(3, "builder_runtime_context", "Builder, runtime, context",
            "Which component does what, what is stored in an engine, and where may it run?", 25, _BUILD,
            "loading and running the engine", ready=True),
    Chapter(4, "fp16_bf16", "FP16 and BF16",
            "What do strong typing and AutoCast change, where does FP16 overflow, which layers to keep?", 30, _TIME,
            "measured speed-up and TensorRT's own numerics", ready=True),
    Chapter(5, "int8_calibration", "INT8 calibration",
            "Where do the scales come from, where do Q/DQ nodes belong, and what does a bad calibrator cost?", 35,
            _TIME, "measured speed-up and TensorRT's own numerics", ready=True),
    Chapter(6, "dynamic_shapes", "Dynamic shapes", "What do min, opt and max decide, and what does a wide range cost?",
            25, _COMPUTE, "time per shape inside and at the edge of a profile", ready=True),
    Chapter(7, "memory", "Memory", "Where do the megabytes go: weights, activations, reuse, workspace?", 25, _BUILD,
            "device memory as the driver sees it", ready=True),
    Chapter(8, "performance", "Performance", "How to measure, what limits a kernel, and why is it not faster?", 35,
            _TIME, "your own measurements beside recorded and predicted ones"),
    Chapter(9, "troubleshooting", "Troubleshooting",
            "A clinic of broken models: what does the message mean, what is the cause, is it fixed?", 30, _COMPUTE,
            "the mistakes that only running can show"),
    Chapter(10, "resnet_efficientnet", "From ResNet-50 to EfficientNet",
            "Why does the network with fewer operations not run faster?", 30, _TIME, "measured latency"),
    Chapter(11, "yolo", "YOLO", "What to do with anchors, boxes and NMS?", 30, _TIME,
            "measured latency of the whole pipeline"),
    Chapter(12, "bert", "BERT", "What does fused attention save, and what does padding cost?", 30, _TIME,
            "measured latency"),
    Chapter(13, "gpt", "GPT", "Prefill, decode, KV cache: which part is TensorRT's, which TensorRT-LLM's?", 35, _TIME,
            "measured tokens a second"),
    Chapter(14, "recommender", "Recommender", "What is left to optimise when embeddings are most of the model?", 25,
            _TIME, "measured latency"),
    Chapter(15, "plugins", "Plugins", "What to do when TensorRT has no such operator?", 30, _BUILD,
            "running a plugin of your own"),
    Chapter(16, "deployment", "Deployment", "Triton and the ecosystem: how does an engine become a service?", 30,
            _BUILD, "serving the engine"),
    Chapter(17, "your_own_model", "Your own model", "What does all of this say about the model you brought?", 30, _TIME,
            "your model, timed"),
)  # fmt: skip
