"""Draw the pictures that README shows, the same bytes each time: notebooks/pictures/make_pictures.py."""

from __future__ import annotations

from pathlib import Path

import trtlab as lab
from trtlab.files import write_atomically

HERE = Path(__file__).resolve().parent
GPU = "RTX 4090"


def main() -> None:
    """Write resnet50_fusion.png and workflow.png beside this file."""
    model = lab.models.resnet50().onnx()
    engine = lab.build(model, gpu=GPU, shapes={"x": (1, 3, 224, 224)})
    nodes, kernels = len(engine.fate(model)), len(engine.kernels)
    title = f"ResNet-50 for an {GPU}: {nodes} ONNX nodes become {kernels} kernels"
    write_atomically(HERE / "resnet50_fusion.png", lab.draw.fusion(engine, model, title=title).png())
    write_atomically(HERE / "workflow.png", lab.draw.workflow().png())


if __name__ == "__main__":
    main()
