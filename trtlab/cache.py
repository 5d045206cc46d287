"""Engines already built: whole entries keyed by content, safe for several processes, capped in size."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trtlab.errors import AssetError
from trtlab.files import cache_folder, write_atomically

FORMAT = 6
_ELSEWHERE = "set TRTLAB_CACHE to a folder with room that you may write to, or pass cache=False."


def engines_folder() -> Path:
    """Where built engines are kept, each a record (.json) and a plan (.plan)."""
    return cache_folder() / "engines"


def limit_bytes() -> int:
    """How large the cache may grow: TRTLAB_CACHE_GIB, else 4 GiB."""
    text = os.environ.get("TRTLAB_CACHE_GIB") or "4"
    try:
        return int(float(text) * 2**30)
    except (ValueError, OverflowError):
        raise AssetError(f"TRTLAB_CACHE_GIB is '{text}'.", fix="set it to a number of GiB, such as 4.") from None


def key_of(order: dict[str, Any], *digests: bytes) -> str:
    """The hash of the model's content, of its external weights, and of everything else that decides the engine."""
    return _digest(b"".join([json.dumps([FORMAT, order], sort_keys=True).encode(), *digests])).decode()


def load(key: str) -> tuple[dict[str, Any], Path] | None:
    """The record and the plan file of an entry, or None; an entry that cannot be read is no entry."""
    record, plan = _files(key)
    with contextlib.suppress(OSError, ValueError):
        digest, text = record.read_bytes().split(b"\n", 1)
        content = json.loads(text)
        if digest == _digest(text) and plan.stat().st_size == content["plan_bytes"]:
            with contextlib.suppress(OSError):
                os.utime(record)  # used just now: the last to be dropped
            return content, plan
    return None


def store(key: str, content: dict[str, Any], plan: bytes) -> Path:
    """Keep an entry and return its plan file; raises AssetError when the cache cannot be written.

    The plan is written first: an entry exists only once its record does.
    """
    record, file = _files(key)
    text = json.dumps({**content, "plan_bytes": len(plan)}).encode()
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, plan)
        write_atomically(record, _digest(text) + b"\n" + text)
    except (OSError, AssetError) as error:
        _remove(record, file)
        cause: Any = error.__cause__ or error
        raise AssetError(f"The engine cache cannot be written ({cause.strerror}).", fix=_ELSEWHERE) from error
    _trim(limit_bytes(), keep=key)
    return file


@contextlib.contextmanager
def lock(key: str) -> Iterator[None]:
    """Hold the right to build this entry; without a lock where the cache folder cannot be written."""
    import filelock  # here, for a build without the cache does not need it

    path = engines_folder() / f"{key}.lock"
    guard = filelock.FileLock(path)
    with contextlib.suppress(OSError, NotImplementedError):
        path.parent.mkdir(parents=True, exist_ok=True)
        guard.acquire()
    try:
        yield
    finally:
        if guard.is_locked:
            guard.release()
            _remove(path)  # who waits for the removed file finds the entry, or builds it once more


def entries() -> dict[str, int]:
    """The bytes of each entry, the one used longest ago first."""
    found = []
    for record in engines_folder().glob("*.json"):
        with contextlib.suppress(OSError):
            status = record.stat()
            found.append((status.st_mtime, record.stem, status.st_size + record.with_suffix(".plan").stat().st_size))
    return {key: size for _, key, size in sorted(found)}


def models() -> list[Path]:
    """The exported reference models, which are kept beside the engines."""
    return sorted(cache_folder().glob("models/*.onnx"))


def clear() -> int:
    """Drop every entry and the exported models; returns how many entries there were."""
    count = len(entries())
    _remove(*models())
    _trim(limit=-1)
    return count


def _trim(limit: int, keep: str = "") -> None:
    """Drop the entries used longest ago until the cache fits `limit` bytes, and what was half written an hour ago."""
    sizes = entries()
    total = sum(sizes.values())
    for key, size in sizes.items():
        if total > limit and key != keep:
            _remove(*_files(key))
            total -= size
    for path in engines_folder().glob("*"):
        with contextlib.suppress(OSError):
            if path.stem not in sizes and path.is_file() and path.stat().st_mtime < time.time() - 3600:
                path.unlink()


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def _files(key: str) -> tuple[Path, Path]:
    return engines_folder() / f"{key}.json", engines_folder() / f"{key}.plan"


def _remove(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
