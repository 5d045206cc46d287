"""trtlab: the TensorRT course that runs anywhere. Import it as `lab`; everything below is loaded on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtlab import datasets, draw, exercises, gpus, machine, memory  # isort: skip
    from trtlab import models, numerics, precision, profiles, recordings, toys
    from trtlab.building import build
    from trtlab.buildlog import read_inspector
    from trtlab.diagnosis import diagnose
    from trtlab.engine import Engine, Layer, Tensor
    from trtlab.errors import AssetError, BuildError, Diagnosis, ModelError, ProfileError, TrtlabError
    from trtlab.export_checks import Checklist, checklist
    from trtlab.gpus import Gpu, gpu
    from trtlab.machine import Machine, doctor
    from trtlab.report import explain

    trt: Any

__version__ = "0.1.0"

# What each file offers. No module is called like a function here, so that lab.build is always the function.
_NAMES = {
    "building": "build",
    "buildlog": "read_inspector",
    "diagnosis": "diagnose",
    "engine": "Engine Layer Tensor",
    "errors": "AssetError BuildError Diagnosis ModelError ProfileError TrtlabError",
    "export_checks": "Checklist checklist",
    "gpus": "Gpu gpu",
    "machine": "Machine doctor",
    "report": "explain",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
_MODULES = (
    "datasets", "draw", "exercises", "gpus", "machine", "memory", "models", "numerics", "precision", "profiles",
    "recordings", "toys",
)  # fmt: skip
__all__ = ["trt", *_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name == "trt":
        return importlib.import_module("trtlab.tensorrt_choice").load_tensorrt()
    if name in _MODULES:
        return importlib.import_module(f"trtlab.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"trtlab.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'trtlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
