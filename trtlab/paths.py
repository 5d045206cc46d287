"""Where the course's data lies and where caches go."""

from __future__ import annotations

import os
from pathlib import Path

from trtlab.errors import AssetError

_HERE = Path(__file__).resolve().parent
DATA = _HERE / "data" if (_HERE / "data").is_dir() else _HERE.parent / "data"


def data_file(name: str) -> Path:
    """The path of a file in data/; raises AssetError when the checkout is not whole."""
    path = DATA / name
    if not path.is_file():
        raise AssetError(f"data/{name} is missing.", fix="run 'git checkout -- data' in the project's folder.")
    return path


def cache_folder() -> Path:
    """The folder for everything that can be made again: TRTLAB_CACHE, else the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("TRTLAB_CACHE") or platformdirs.user_cache_dir("trtlab", appauthor=False))
