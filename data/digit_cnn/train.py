"""Train the digit CNN and write its weights: `python data/digit_cnn/train.py -o weights.npz`, 4 minutes on 2 cores.

Real digits (trtlab.datasets.digits), 4,000 to train with and 1,000 held out. On the same machine the same seed gives
the same weights; without -o it writes the course's own file, and only with --overwrite.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trtlab.datasets import Dataset, digits
from trtlab.files import write_atomically
from trtlab.models.architectures import DigitCnn

BATCH = 64


def jitter(images: Tensor) -> Tensor:
    """Turn (+-11 degrees), scale (+-10%), shear (+-0.1) and shift (+-2 pixels) each image (N, 1, 28, 28) at random."""
    count = len(images)
    angle = (torch.rand(count) - 0.5) * 0.4
    scale = 1 + (torch.rand(count) - 0.5) * 0.2
    shear = (torch.rand(count) - 0.5) * 0.2
    shift = (torch.rand(count, 2) - 0.5) * 2 * 4 / 28
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cos, shear - sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(rows, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


@torch.inference_mode()
def accuracy(model: nn.Module, data: Dataset) -> float:
    """The share of `data` that `model` gets right."""
    model.eval()
    return float((model(torch.from_numpy(data.images)).argmax(1).numpy() == data.labels).mean())


def train(epochs: int, seed: int) -> DigitCnn:
    """Train on the 4,000 digits and print the accuracy on the 1,000 others after each epoch."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    model = DigitCnn()
    data, held_out = digits("train"), digits("test")
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    steps = epochs * (len(data) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    for epoch in range(epochs):
        model.train()
        for chosen in torch.randperm(len(data))[: len(data) // BATCH * BATCH].split(BATCH):
            loss = functional.cross_entropy(model(jitter(images[chosen])), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}: held-out accuracy {accuracy(model, held_out):.3f}", flush=True)
    return model


def main() -> int:
    """Read the command line, train, write."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Train the digit CNN.")
    parser.add_argument("-o", "--output", type=Path, default=here / "weights.npz")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    options = parser.parse_args()
    if options.output.exists() and not options.overwrite:
        print(f"{options.output} is there already: name another file with -o, or pass --overwrite.", file=sys.stderr)
        return 1
    model = train(options.epochs, options.seed)
    content = io.BytesIO()
    np.savez(content, **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
    write_atomically(options.output, content.getvalue())
    print(f"wrote {options.output}: {len(content.getvalue()):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
