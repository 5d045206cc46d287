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

import filelock

from trtlab.errors import AssetError
from trtlab.files import cache_folder, write_atomically

FORMAT = 5
_ELSEWHERE = "set TRTLAB_CACHE to a folder with room that you may write to, or pass cache=False."


def engines_folder() -> Path:
    """Where built engines are kept: for each a record (.json) and a plan (.plan)."""
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
    return hashlib.sha256(b"".join([json.dumps([FORMAT, order], sort_keys=True).encode(), *digests])).hexdigest()


def load(key: str) -> tuple[dict[str, Any], Path] | None:
    """The record and the plan file of an entry, or None; an entry that cannot be read is no entry."""
    record, plan = _files(key)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        digest, _, text = record.read_bytes().partition(b"\n")
        content = json.loads(text)
        if _digest(text) == digest and plan.stat().st_size == content["plan_bytes"]:
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
    except OSError as error:
        raise AssetError(f"The cache folder cannot be made ({error.strerror}).", fix=_ELSEWHERE) from error
    except AssetError as error:
        _remove(record, file)
        raise AssetError(error.message.replace(f"'{file}'", "The engine cache"), fix=_ELSEWHERE) from error
    trim(keep=key)
    return file


@contextlib.contextmanager
def lock(key: str) -> Iterator[None]:
    """Hold the right to build this entry; without a lock where the cache folder cannot be written."""
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


def entries() -> list[tuple[str, int, float]]:
    """(key, bytes, last use in seconds since 1970) of each entry, oldest first."""
    found = []
    for record in engines_folder().glob("*.json"):
        with contextlib.suppress(OSError):
            status, plan = record.stat(), record.with_suffix(".plan").stat()
            found.append((record.stem, status.st_size + plan.st_size, status.st_mtime))
    return sorted(found, key=lambda entry: entry[2])


def trim(limit: int | None = None, keep: str = "") -> int:
    """Drop the entries used longest ago until the cache fits `limit` bytes; returns how many went.

    What a process left that was killed while it wrote goes too, an hour later.
    """
    limit = limit_bytes() if limit is None else limit
    sizes, dropped = {key: size for key, size, _ in entries()}, 0
    total = sum(sizes.values())
    for key, size in sizes.items():
        if total > limit and key != keep:
            _remove(*_files(key))
            total, dropped = total - size, dropped + 1
    for path in engines_folder().glob("*"):
        with contextlib.suppress(OSError):
            if path.stem not in sizes and path.is_file() and path.stat().st_mtime < time.time() - 3600:
                path.unlink()
    return dropped


def clear() -> int:
    """Drop every entry; returns how many there were."""
    return trim(limit=-1)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def _files(key: str) -> tuple[Path, Path]:
    return engines_folder() / f"{key}.json", engines_folder() / f"{key}.plan"


def _remove(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
