"""Engines already built: whole entries keyed by content, safe for several processes, capped in size."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtlab.errors import AssetError
from trtlab.files import cache_folder, write_atomically
from trtlab.onnx_model import Source, digest_of

if TYPE_CHECKING:
    import filelock

FORMAT = 4
DEFAULT_LIMIT = 4 * 2**30


def engines_folder() -> Path:
    """Where built engines are kept."""
    return cache_folder() / "engines"


def limit_bytes() -> int:
    """How large the cache may grow: TRTLAB_CACHE_GIB, else 4 GiB."""
    text = os.environ.get("TRTLAB_CACHE_GIB", "")
    try:
        return int(float(text) * 2**30) if text else DEFAULT_LIMIT
    except (ValueError, OverflowError):
        raise AssetError(f"TRTLAB_CACHE_GIB is '{text}'.", fix="set it to a number of GiB, such as 4.") from None


def key_of(source: Source, order: dict[str, Any], external: tuple[Path, ...]) -> str:
    """The hash of the model's content, of its external weights, and of everything else that decides the engine."""
    digest = hashlib.sha256(json.dumps([FORMAT, order], sort_keys=True).encode())
    digest.update(source.digest)
    for path in external:
        digest.update(digest_of(path))
    return digest.hexdigest()


def load(key: str) -> tuple[dict[str, Any], Path] | None:
    """The record and the plan file of an entry, or None; an entry that cannot be read is no entry."""
    record, plan = _files(key)
    try:
        digest, _, text = record.read_bytes().partition(b"\n")
        content = json.loads(text)
        if _digest(text) != digest or plan.stat().st_size != content["plan_bytes"]:
            return None
        with contextlib.suppress(OSError):
            os.utime(record)  # used just now: the last to be dropped
        return content, plan
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def store(key: str, content: dict[str, Any], plan: bytes) -> Path:
    """Keep an entry and return its plan file; raises AssetError when the cache cannot be written.

    The plan is written first: an entry exists only once its record does.
    """
    record, file = _files(key)
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetError(f"The cache folder cannot be made ({error.strerror}).", fix=_ELSEWHERE) from error
    try:
        write_atomically(file, plan)
        text = json.dumps({**content, "plan_bytes": len(plan)}).encode()
        write_atomically(record, _digest(text) + b"\n" + text)
    except AssetError as error:
        _remove(key)
        raise AssetError(error.message.replace(f"'{file}'", "The engine cache"), fix=_ELSEWHERE) from error
    trim(keep=key)
    return file


@contextlib.contextmanager
def lock(key: str) -> Iterator[None]:
    """Hold the right to build this entry; without a lock where the cache folder cannot be written."""
    guard = _acquire(key[:2])
    try:
        if guard is not None:
            _sweep(f"{key[:2]}*", older_than=0)  # only a holder of this lock writes such files, and there is no other
        yield
    finally:
        if guard is not None:
            guard.release()


def _acquire(shard: str) -> filelock.BaseFileLock | None:
    """The lock of a 256th of all entries: locks leave their files behind, and so these stay few."""
    import filelock

    folder = engines_folder() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        guard = filelock.FileLock(folder / f"{shard}.lock")
        guard.acquire()
        return guard
    except (OSError, NotImplementedError):
        return None


def entries() -> list[tuple[str, int, float]]:
    """(key, bytes, last use in seconds since 1970) of each entry, oldest first."""
    found = []
    for record in engines_folder().glob("*.json"):
        with contextlib.suppress(OSError):
            status = record.stat()
            size = status.st_size + _files(record.stem)[1].stat().st_size
            found.append((record.stem, size, status.st_mtime))
    return sorted(found, key=lambda entry: entry[2])


def trim(limit: int | None = None, keep: str = "") -> int:
    """Drop the entries used longest ago until the cache fits `limit` bytes; returns how many went."""
    limit = limit_bytes() if limit is None else limit
    kept = entries()
    total = sum(size for _, size, _ in kept)
    dropped = 0
    for key, size, _ in kept:
        if total <= limit:
            break
        if key != keep:
            _remove(key)
            total -= size
            dropped += 1
    _sweep("*", older_than=3600)
    return dropped


def clear() -> int:
    """Drop every entry; returns how many there were."""
    return trim(limit=-1)


def _sweep(keys: str, older_than: float) -> None:
    """Remove what a process left that was killed while it wrote: half files, and a record or plan without the other."""
    folder, limit = engines_folder(), time.time() - older_than
    found = [*folder.glob(f".{keys}.part")]
    for kind, other in ((".json", ".plan"), (".plan", ".json")):
        found += [path for path in folder.glob(keys + kind) if not path.with_suffix(other).exists()]
    for path in found:
        with contextlib.suppress(OSError):
            if path.stat().st_mtime <= limit:
                path.unlink()


_ELSEWHERE = "set TRTLAB_CACHE to a folder with room that you may write to, or pass cache=False."


def _files(key: str) -> tuple[Path, Path]:
    folder = engines_folder()
    return folder / f"{key}.json", folder / f"{key}.plan"


def _remove(key: str) -> None:
    for path in _files(key):
        with contextlib.suppress(OSError):
            path.unlink()
