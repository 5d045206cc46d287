"""The command line: python -m trtlab doctor | build | explain | diagnose | cache."""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path

import trtlab as lab
from trtlab import cache


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status is 1 when it failed with a TrtlabError."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except lab.TrtlabError as error:
        print(f"{type(error).__name__}: {error.message}", file=sys.stderr)
        if error.diagnosis.fix:
            print(f"  fix: {error.diagnosis.fix}", file=sys.stderr)
        if error.diagnosis.reference:
            print(f"  see: {error.diagnosis.reference}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trtlab", description="The TensorRT course that runs anywhere.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: object, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(run=run)
        return added

    command("doctor", _doctor, "what this machine can do, and a fix for every gap")
    for name, run, summary in (
        ("build", _build, "compile an ONNX model and list the engine's layers"),
        ("explain", _explain, "one HTML page: what TensorRT made of your model"),
    ):
        added = command(name, run, summary)
        added.add_argument("model", type=Path, help="an ONNX file")
        added.add_argument("--gpu", help='a GPU ("RTX 4090"), a compute capability (8.9) or a target (SM89)')
        added.add_argument("--shapes", nargs="+", default=[], metavar="INPUT=SHAPE", help=_SHAPES_HELP)
        added.add_argument("-o", "--output", type=Path, help="where to write the page, or with build the engine")
        added.add_argument("--overwrite", action="store_true", help="replace an output file that exists")
    added = command("diagnose", _diagnose, "cause, evidence and fix of a message, a log file or a model")
    added.add_argument("what", help="an .onnx file, a text file, a message in quotes, or - for standard input")
    added = command("cache", _cache, "where built engines are kept and how large they are")
    added.add_argument("--clear", action="store_true", help="remove them all")
    return parser


_SHAPES_HELP = "one shape (x=8,3,224,224) or min:opt:max (x=1,3,224,224:8,3,224,224:32,3,224,224)"


def _shapes(texts: list[str]) -> dict[str, list[tuple[int, ...]]] | None:
    """{"x": [(1, 3), (8, 3), (32, 3)]} from ["x=1,3:8,3:32,3"]; x is also accepted between commas or ×."""
    shapes = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        try:
            found = [tuple(int(size) for size in part.replace("x", ",").split(",")) for part in sizes.split(":")]
        except ValueError:
            found = []
        if not name or len(found) not in (1, 3):
            raise lab.ProfileError(f"--shapes {text!r} cannot be read.", fix=f"write {_SHAPES_HELP}.")
        if name in shapes:
            raise lab.ProfileError(
                f"--shapes names '{name}' twice.", fix="write one shape, or min:opt:max, for each input."
            )
        shapes[name] = found * 3 if len(found) == 1 else found
    return shapes or None


def _doctor(_: argparse.Namespace) -> None:
    print(lab.doctor())


def _build(options: argparse.Namespace) -> None:
    engine = lab.build(options.model, gpu=options.gpu, shapes=_shapes(options.shapes))
    print(engine.table()[["layer", "type", "onnx_nodes", "outputs", "KiB"]].to_string(index=False, max_colwidth=48))
    print(engine)
    if options.output:
        print(f"written: {engine.save(options.output, overwrite=options.overwrite)}")


def _explain(options: argparse.Namespace) -> None:
    path = lab.explain(
        options.model,
        gpu=options.gpu,
        output=options.output or "report.html",
        shapes=_shapes(options.shapes),
        overwrite=options.overwrite,
    )
    print(f"written: {path}")


def _diagnose(options: argparse.Namespace) -> None:
    what = sys.stdin.read() if options.what == "-" else options.what
    path = Path(options.what)
    if path.suffix in (".txt", ".log") and (path.is_file() or not any(map(str.isspace, options.what))):
        try:
            what = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise lab.AssetError(
                f"There is no file '{options.what}' to read ({error.strerror}).", fix="check the path."
            ) from error
    print(lab.diagnose(what))


def _cache(options: argparse.Namespace) -> None:
    if options.clear:
        print(f"removed {cache.clear()} engines")
    entries = cache.entries()
    size = sum(entry[1] for entry in entries)
    limit = cache.limit_bytes()
    print(f"{len(entries)} engines, {size / 2**20:,.1f} MiB of at most {limit / 2**20:,.0f} MiB")
    print(f"in {cache.engines_folder()} (TRTLAB_CACHE moves it, TRTLAB_CACHE_GIB sets the limit)")


def _run() -> int:
    """main() for a terminal of any encoding, and for a pipe that the reader may close."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        status = main()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    raise SystemExit(_run())
