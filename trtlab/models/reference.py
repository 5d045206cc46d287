"""What a reference model is, and where its ONNX file is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import filelock
import numpy as np
from torch import nn

from trtlab import tables
from trtlab.errors import AssetError
from trtlab.files import cache_folder, write_atomically
from trtlab.models.export import Shape, export

_EXPORTERS = ("torch", "onnx", "onnx-ir", "onnxscript")
_SOURCES = ("architectures.py", "export.py")


@dataclass(frozen=True, eq=False)
class ReferenceModel:
    """A model of the course: where it comes from, what goes in, and how to get it as PyTorch module or ONNX file.

    `inputs` maps a name to its shape, where "N" (batch) and "S" (sequence) may be any size; `labels` names the logits.
    `make` makes the module, `examples(batch)` its inputs, and `fingerprint` tells one set of weights from another.
    """

    name: str
    title: str
    task: str
    source: str
    inputs: dict[str, Shape]
    make: Callable[[], nn.Module] = field(repr=False)
    examples: Callable[[int], dict[str, np.ndarray]] = field(repr=False)
    fingerprint: Callable[[], str] = field(default=str, repr=False)
    outputs: tuple[str, ...] = ("logits",)
    labels: tuple[str, ...] | None = None
    weights: str = "random (seed 0), not trained: use it for structure, speed and memory, not for accuracy"
    licence: str = "Apache-2.0"

    def sample(self, batch: int = 1) -> dict[str, np.ndarray]:
        """The same `batch` inputs on every call, by input name; real photos or digits where the model was trained."""
        if batch < 1:
            raise AssetError(f"A batch of {batch} has no samples.", fix="ask for a batch of 1 or more.")
        return self.examples(batch)

    def torch_module(self) -> nn.Module:
        """A new PyTorch module in eval mode, on the CPU, without gradients.

        Raises AssetError when the package with its weights is missing.
        """
        return self.make().eval().requires_grad_(False)

    def onnx(self, fold_batch_norm: bool = True) -> Path:
        """The path of the model as one ONNX file (opset 20, dynamic batch), exported on first use and then cached.

        With `fold_batch_norm=False` batch norm stays a node of its own. Safe when two processes ask at once.
        Raises AssetError when the package with its weights is missing or the cache cannot be written.
        """
        folder = cache_folder() / "models"
        path = folder / f"{self.name}-{self._key(fold_batch_norm)}.onnx"
        if path.is_file():
            return path
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(path.with_suffix(".lock")).acquire()
        except OSError as error:
            what = f"The cache folder '{folder}' cannot be written ({error.strerror or error})."
            raise AssetError(what, fix="set TRTLAB_CACHE to a folder you may write to.") from error
        with lock:
            if not path.is_file():
                write_atomically(path, self._export(fold_batch_norm))
        return path

    def _export(self, fold_batch_norm: bool) -> bytes:
        # PyTorch takes a size of 1 for a constant, so the sample has a batch of 2.
        model = export(self.torch_module(), self.sample(2), self.inputs, self.outputs, fold_batch_norm=fold_batch_norm)
        model.graph.name = self.name
        return model.SerializeToString(deterministic=True)

    def _key(self, fold_batch_norm: bool) -> str:
        """A hash of everything the file's content depends on."""
        sources = [(Path(__file__).parent / name).read_text(encoding="utf-8") for name in _SOURCES]
        versions = [metadata.version(name) for name in _EXPORTERS]
        parts = [self.name, self.fingerprint(), fold_batch_norm, self.inputs, self.outputs, versions, sources]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def _repr_html_(self) -> str:
        inputs = ", ".join(f"{name} {list(shape)}".replace("'", "") for name, shape in self.inputs.items())
        facts = {"model": self.title, "task": self.task, "weights": self.weights, "inputs": inputs}
        facts |= {"outputs": ", ".join(self.outputs), "source": self.source, "licence": self.licence}
        return tables.facts(facts)
