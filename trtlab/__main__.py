"""The command line: python -m trtlab doctor | build | explain | diagnose | cache."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from pathlib import Path

import trtlab as lab

_SHAPES_HELP = "one shape (x=8,3,224,224) or min:opt:max (x=1,3,224,224:8,3,224,224:32,3,224,224)"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status is 1 when it failed with a TrtlabError."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        return 0
    except lab.TrtlabError as error:
        found = error.diagnosis
        lines = (f"{type(error).__name__}: {error.message}", found.fix and f"  fix: {found.fix}",
                 found.reference and f"  see: {found.reference}")  # fmt: skip
        print(*filter(None, lines), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trtlab", description="The TensorRT course that runs anywhere.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(run: object, name: str, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(run=run)
        return added

    command(lambda _: print(lab.doctor()), "doctor", "what this machine can do, and a fix for everything it lacks")
    for added in (
        command(_build, "build", "compile an ONNX model and list the engine's layers"),
        command(_explain, "explain", "one HTML page: what TensorRT made of your model"),
    ):
        added.add_argument("model", type=Path, help="an ONNX file")
        added.add_argument("--gpu", help='a GPU ("RTX 4090"), a compute capability (8.9) or a target (SM89)')
        added.add_argument("--shapes", nargs="+", default=[], metavar="INPUT=SHAPE", help=_SHAPES_HELP)
        added.add_argument("-o", "--output", type=Path, help="where to write the page, or with build the engine")
        added.add_argument("--overwrite", action="store_true", help="replace an output file that exists")
    added = command(_diagnose, "diagnose", "cause, evidence and fix of a message, a log file or a model")
    added.add_argument("what", help="an .onnx file, a log or text file, a message in quotes, or - for standard input")
    added = command(_cache, "cache", "where built engines are kept and how large they are")
    added.add_argument("--clear", action="store_true", help="remove them all")
    return parser


def _shapes(texts: list[str]) -> dict[str, list[tuple[int, ...]]] | None:
    """{"x": [(1, 3), (8, 3), (32, 3)]} from ["x=1,3:8,3:32,3"]; sizes are separated by commas or x."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        if not name or not re.fullmatch(r"(\d+(,\d+)*)(:\d+(,\d+)*:\d+(,\d+)*)?", sizes := sizes.replace("x", ",")):
            raise lab.ProfileError(f"--shapes {text!r} cannot be read.", fix=f"write {_SHAPES_HELP}.")
        if name in shapes:
            fix = "write one shape, or min:opt:max, for each input."
            raise lab.ProfileError(f"--shapes names '{name}' twice.", fix=fix)
        found = [tuple(map(int, shape.split(","))) for shape in sizes.split(":")]
        shapes[name] = found * 3 if len(found) == 1 else found
    return shapes or None


def _build(options: argparse.Namespace) -> None:
    engine = lab.build(options.model, gpu=options.gpu, shapes=_shapes(options.shapes))
    print(engine.table()[["layer", "type", "onnx_nodes", "outputs", "KiB"]].to_string(index=False, max_colwidth=48))
    print(engine)
    if options.output:
        print(f"written: {engine.save(options.output, overwrite=options.overwrite)}")


def _explain(options: argparse.Namespace) -> None:
    output, shapes = options.output or "report.html", _shapes(options.shapes)
    print(f"written: {lab.explain(options.model, options.gpu, output, shapes, overwrite=options.overwrite)}")
    if guessed := {} if shapes else lab.profiles.guess(options.model):
        print(f"sizes of dynamic inputs were guessed (--shapes gives others): {guessed}")


def _diagnose(options: argparse.Namespace) -> None:
    from trtlab.logs import diagnose_lines, lines_of  # here, so that the doctor runs where nothing is installed

    print(diagnose_lines(lines_of(sys.stdin.buffer)) if options.what == "-" else lab.diagnose(options.what))


def _cache(options: argparse.Namespace) -> None:
    from trtlab import cache  # here, so that the doctor runs where nothing is installed

    if options.clear:
        print(f"removed {cache.clear()} engines and the exported models")
    entries = cache.entries()
    size, limit = sum(entries.values()) / 2**20, cache.limit_bytes() / 2**20
    print(f"{len(entries)} engines, {size:,.1f} MiB of at most {limit:,.0f} MiB")
    kept = cache.models()
    print(f"{len(kept)} exported models, {sum(path.stat().st_size for path in kept) / 2**20:,.1f} MiB")
    print(f"in {cache.engines_folder().parent} (TRTLAB_CACHE moves it, TRTLAB_CACHE_GIB sets the limit)")


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
