"""What is built once is not built again, unless something that decides the engine has changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny_models as tiny
from conftest import leftovers

import trtlab as lab
from trtlab import cache as engine_cache
from trtlab.onnx_model import Source, digest_of
from trtlab.process import CompilerProcess

pytestmark = pytest.mark.usefixtures("tidy")

ANY = {"x": (4, 16)}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many compiler processes were started so far."""
    started = []
    begin = CompilerProcess.__init__

    def count(process: CompilerProcess) -> None:
        started.append(process)
        begin(process)

    monkeypatch.setattr(CompilerProcess, "__init__", count)
    return lambda: len(started)


def test_same_model_is_compiled_once(compiled: Callable[[], int]) -> None:
    first, again = lab.build(tiny.conv()), lab.build(tiny.conv())
    assert compiled() == 1
    assert again == first
    assert again.plan.read_bytes() == first.plan.read_bytes()
    assert again.log == first.log


def test_other_name_of_the_file_is_the_same_model(tmp_path: Path, compiled: Callable[[], int]) -> None:
    for name in ("one.onnx", "two.onnx"):
        onnx.save(tiny.conv(), tmp_path / name)
        lab.build(tmp_path / name)
    assert compiled() == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda: lab.build(tiny.mlp("N"), shapes={"x": (5, 16)}),
        lambda: lab.build(tiny.mlp("N"), shapes=[ANY, ANY]),
        lambda: lab.build(tiny.mlp("M"), shapes=ANY),
        lambda: lab.build(tiny.mlp("N"), gpu="RTX 3090", shapes=ANY),
    ],
    ids=["shape", "profiles", "model", "target"],
)
def test_anything_else_is_compiled_anew(compiled: Callable[[], int], other: Callable[[], Any]) -> None:
    lab.build(tiny.mlp("N"), shapes=ANY)
    other()
    assert compiled() == 2


def test_other_tensorrt_version_is_compiled_anew(compiled: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    lab.build(tiny.conv())
    monkeypatch.setattr(lab.trt, "__version__", "1.7.2.0")
    lab.build(tiny.conv())
    assert compiled() == 2


def test_two_spellings_of_the_same_order_share_an_engine(compiled: Callable[[], int]) -> None:
    lab.build(tiny.mlp("N"), gpu="RTX 4090", shapes={"x": (4, 16)})
    lab.build(tiny.mlp("N"), gpu=8.9, shapes={"x": [[4, 16]] * 3})
    lab.build(tiny.mlp("N"), shapes=[{"x": ((4, 16), (4, 16), (4, 16))}])
    assert compiled() == 1


def test_touching_the_external_weights_compiles_anew(tmp_path: Path, compiled: Callable[[], int]) -> None:
    onnx.save(tiny.conv(), tmp_path / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    lab.build(tmp_path / "net.onnx")
    moment = (tmp_path / "w.bin").stat()
    os.utime(tmp_path / "w.bin")
    lab.build(tmp_path / "net.onnx")
    assert compiled() == 1, "only the time has changed"
    content = bytearray((tmp_path / "w.bin").read_bytes())
    content[1] ^= 1
    (tmp_path / "w.bin").write_bytes(content)
    os.utime(tmp_path / "w.bin", ns=(moment.st_atime_ns, moment.st_mtime_ns))
    lab.build(tmp_path / "net.onnx")
    assert compiled() == 2, "the content has changed, though size and time have not"


def test_without_the_cache_nothing_is_written(cache: Path) -> None:
    engine = lab.build(tiny.conv(), cache=False)
    assert isinstance(engine.plan, bytes)
    assert not cache.exists()


def test_failed_build_is_not_kept(cache: Path, compiled: Callable[[], int]) -> None:
    for _ in range(2):
        with pytest.raises(lab.BuildError):
            lab.build(tiny.mlp(), gpu="T4")
    assert compiled() == 2
    assert not list(cache.rglob("*.json"))


# --------------------------------------------------------------- damaged entries


@pytest.mark.parametrize(
    "damage",
    [
        lambda record, plan: record.write_bytes(record.read_bytes()[:-50]),
        lambda record, plan: record.write_bytes(b"\xff\xfe not a record"),
        lambda record, plan: record.write_bytes(record.read_bytes().replace(b"conv1", b"conv9")),
        lambda record, plan: engine_cache.store(record.stem, {"made by": "another version"}, plan.read_bytes()),
        lambda record, plan: plan.write_bytes(plan.read_bytes()[:-1]),
        lambda record, plan: plan.unlink(),
        lambda record, plan: record.unlink(),
    ],
    ids=["cut", "bytes", "changed", "version", "cut plan", "no plan", "no record"],
)
def test_damaged_entry_is_built_again_without_a_word(
    cache: Path, compiled: Callable[[], int], damage: Callable[[Path, Path], Any], recwarn: pytest.WarningsRecorder
) -> None:
    first = lab.build(tiny.conv())
    damage(next(cache.rglob("*.json")), next(cache.rglob("*.plan")))
    again = lab.build(tiny.conv())
    assert compiled() == 2
    assert again.layers == first.layers
    assert lab.build(tiny.conv()) == again
    assert compiled() == 2
    assert not recwarn.list


def test_entry_that_is_a_folder_does_no_harm(cache: Path) -> None:
    lab.build(tiny.conv())
    record = next(cache.rglob("*.json"))
    record.unlink()
    record.mkdir()
    with pytest.warns(UserWarning, match="not cached"):
        assert lab.build(tiny.conv()).kernels
    record.rmdir()


def test_what_a_killed_process_left_is_swept_once_it_is_old(cache: Path) -> None:
    lab.build(tiny.conv())
    plan = next(cache.rglob("*.plan"))
    left = [plan.with_name(name) for name in (f".{plan.name}.abc123.part", "f00.plan", "f01.json", "f02.lock")]
    for path in left:
        path.write_bytes(b"half an engine")
        os.utime(path, (time.time() - 7200,) * 2)
    lab.build(tiny.mlp())
    assert not [path for path in left if path.exists()]
    assert len(engine_cache.entries()) == 2


# -------------------------------------------------------------------------- size


def aged(cache: Path, hours: float) -> None:
    """Make the newest entry look as if it was last used `hours` ago."""
    newest = max(cache.rglob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in (newest, newest.with_suffix(".plan")):
        os.utime(path, (time.time() - hours * 3600,) * 2)


def test_cache_drops_what_was_used_longest_ago(
    cache: Path, compiled: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for hours, batch in ((3, 1), (2, 2), (1, 3)):
        lab.build(tiny.conv(batch))
        aged(cache, hours)
    sizes = engine_cache.entries().values()
    lab.build(tiny.conv(1))
    assert compiled() == 3, "used again, so now the second is the oldest"
    monkeypatch.setenv("TRTLAB_CACHE_GIB", str((sum(sizes) + min(sizes) / 2) / 2**30))
    lab.build(tiny.conv(4))
    assert len(engine_cache.entries()) == 3
    lab.build(tiny.conv(1))
    lab.build(tiny.conv(3))
    assert compiled() == 4, "these were kept"
    lab.build(tiny.conv(2))
    assert compiled() == 5


def test_engine_larger_than_the_cache_is_kept_until_the_next(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLAB_CACHE_GIB", "0.00000001")
    first = lab.build(tiny.conv(1))
    assert first.plan.is_file()
    lab.build(tiny.conv(2))
    assert len(engine_cache.entries()) == 1
    assert not leftovers(cache)


def test_clear_empties_the_cache(cache: Path) -> None:
    assert engine_cache.clear() == 0
    assert not cache.exists()
    lab.build(tiny.conv(1))
    lab.build(tiny.conv(2))
    exported = cache / "models" / "net.onnx"
    exported.parent.mkdir()
    exported.write_bytes(b"a model")
    assert engine_cache.models() == [exported]
    assert engine_cache.clear() == 2
    assert not exported.exists()
    assert not engine_cache.entries()
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_entries_of_an_older_trtlab_are_counted_and_never_used(cache: Path, compiled: Callable[[], int]) -> None:
    folder = cache / "engines"
    folder.mkdir(parents=True)
    (folder / "locks").mkdir()
    (folder / "0a1b.json").write_text('{"format": 1}')
    (folder / "0a1b.plan").write_bytes(b"an old plan")
    assert lab.build(tiny.conv()) == lab.build(tiny.conv())
    assert compiled() == 1
    assert len(engine_cache.entries()) == 2
    assert engine_cache.clear() == 2


# ------------------------------------------------------------------------ saving


def test_save_writes_the_whole_plan(tmp_path: Path) -> None:
    engine = lab.build(tiny.conv())
    path = engine.save(tmp_path / "net.plan")
    assert path.read_bytes() == engine.plan.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o644
    assert lab.build(tiny.conv(), cache=False).save(str(tmp_path / "two.plan")).stat().st_size > 1000


def test_save_never_overwrites(tmp_path: Path) -> None:
    engine = lab.build(tiny.conv())
    (tmp_path / "mine.txt").write_text("precious")
    (tmp_path / "link.plan").symlink_to(tmp_path / "nowhere")
    for name in ("mine.txt", "link.plan"):
        with pytest.raises(lab.AssetError, match=rf"{name}' exists.*overwrite=True"):
            engine.save(tmp_path / name)
    assert (tmp_path / "mine.txt").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
    assert sorted(path.name for path in tmp_path.glob("*.p*")) == ["link.plan"]
    assert engine.save(tmp_path / "mine.txt", overwrite=True).stat().st_size > 1000


def test_save_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(lab.AssetError, match=r"cannot be written \(No such file"):
        lab.build(tiny.conv()).save(tmp_path / "no" / "net.plan")
    with pytest.raises(lab.AssetError):
        lab.build(tiny.conv()).save(tmp_path, overwrite=True)
    assert not list(tmp_path.parent.glob(".*.part"))


def test_save_after_the_cache_was_cleared_says_what_to_do(tmp_path: Path) -> None:
    engine = lab.build(tiny.conv())
    engine_cache.clear()
    with pytest.raises(lab.AssetError, match="build the model again"):
        engine.save(tmp_path / "net.plan")
    assert not (tmp_path / "net.plan").exists()


def test_a_model_that_changes_while_it_is_compiled_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(tiny.heavy(2), path)
    with pytest.raises(lab.ModelError, match=r"'net\.onnx' changed while it was"):
        lab.build(path, shapes={"x": (1, 32, 64)}, progress=lambda *_: onnx.save(tiny.conv(), path))
    assert not engine_cache.entries()


def test_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"model")
    assert digest_of(tmp_path / "file") == Source(b"model").digest != Source(b"modem").digest


def test_cached_engine_of_a_model_without_external_weights_needs_no_look_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.onnx").write_bytes(tiny.conv().SerializeToString())
    first = lab.build(tmp_path / "net.onnx")
    monkeypatch.setattr(onnx, "load_model_from_string", lambda data: pytest.fail("the model was parsed"))
    assert lab.build(tmp_path / "net.onnx") == first
