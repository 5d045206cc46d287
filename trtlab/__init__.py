"""trtlab: the TensorRT course that runs anywhere. Import it as `lab`; everything below is loaded on first use."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtlab import datasets, draw, exercises, memory, models, numerics, precision, profiles, recordings, widgets
    from trtlab.build import build
    from trtlab.checklist import Checklist, checklist
    from trtlab.diagnose import diagnose
    from trtlab.engine import Engine, Layer, Tensor
    from trtlab.errors import AssetError, BuildError, Diagnosis, ModelError, ProfileError, TrtlabError
    from trtlab.explain import explain
    from trtlab.gpus import Gpu, gpu
    from trtlab.machine import Machine, doctor

    trt: Any

__version__ = "0.1.0"

_HOME = {
    "build": "build",
    "Checklist": "checklist",
    "checklist": "checklist",
    "diagnose": "diagnose",
    "Engine": "engine",
    "Layer": "engine",
    "Tensor": "engine",
    "AssetError": "errors",
    "BuildError": "errors",
    "Diagnosis": "errors",
    "ModelError": "errors",
    "ProfileError": "errors",
    "TrtlabError": "errors",
    "explain": "explain",
    "Gpu": "gpus",
    "gpu": "gpus",
    "Machine": "machine",
    "doctor": "machine",
}
_MODULES = (
    "datasets", "draw", "exercises", "memory", "models", "numerics", "precision", "profiles", "recordings", "widgets",
)  # fmt: skip

__all__ = [  # noqa: RUF022  (the order of a newcomer's questions)
    "doctor", "Machine", "gpu", "Gpu", "trt", "build", "Engine", "Layer", "Tensor", "checklist", "Checklist",
    "diagnose", "Diagnosis", "explain", "models", "datasets", "numerics", "precision", "profiles", "memory",
    "recordings", "draw", "widgets", "exercises",
    "TrtlabError", "BuildError", "ModelError", "ProfileError", "AssetError",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "trt":
        from trtlab.machine import load_tensorrt

        return load_tensorrt()
    if name in _MODULES:
        return importlib.import_module(f"trtlab.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"trtlab.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'trtlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Lets lab.build stay the function when Python, on importing trtlab/build.py, would make it the module."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
