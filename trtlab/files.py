"""Where the course's data lies and where caches go."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import platformdirs

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
    return Path(os.environ.get("TRTLAB_CACHE") or platformdirs.user_cache_dir("trtlab", appauthor=False))


def write_atomically(path: Path, content: bytes | str, *, overwrite: bool = True) -> None:
    """Write `content` so that `path` is either the old file or the whole new one.

    Raises AssetError when it cannot be written, and without `overwrite` when `path` exists.
    """
    if not overwrite and os.path.lexists(path):
        raise AssetError(f"'{path}' exists.", fix="choose another name or pass overwrite=True.")
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        fix = "choose a folder that exists, that you may write to and that has room."
        raise AssetError(f"'{path}' cannot be written ({error.strerror or error}).", fix=fix) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
