"""What takes the memory of a GPU when an engine runs, part by part, and how we know."""

from __future__ import annotations

import re

import pandas as pd

from trtlab.engine import Engine, Tensor
from trtlab.errors import AssetError, ProfileError
from trtlab.memory.lifetimes import liveness


def breakdown(engine: Engine) -> pd.DataFrame:
    """One row a part: weights, activations, scratch, inputs, outputs, host; `bytes` is None where only a GPU knows.

    Activations are the most bytes alive at once; scratch is what TensorRT reserves beyond them. An engine for a range
    of shapes has both in one row; all sizes are those of its largest profile.
    """
    if not isinstance(engine, Engine):
        raise AssetError(
            f"breakdown() takes an Engine, not {type(engine).__name__}; a plan file tells its parts only to a GPU.",
            fix="lab.build(model) makes an Engine, lab.read_inspector(text) reads one.",
        )
    found = re.search(r"Total Host Persistent Memory: (\d+) bytes", engine.log)
    host = int(found[1]) if found else None
    rows = [
        ("weights", engine.weight_bytes, "one copy an engine", "TensorRT's log: Total Weights Memory"),
        *_context(engine),
        ("inputs", _io_bytes(engine, "Input"), "your buffers", "shapes and types of the engine's inputs"),
        ("outputs", _io_bytes(engine, "Output"), "your buffers", "shapes and types of the engine's outputs"),
        ("host", host, "one copy a context, in host memory", "TensorRT's log: Host Persistent"),
        ("CUDA context, kernels", None, "one a process", "needs a GPU: cudaMemGetInfo before and after"),
    ]
    table = pd.DataFrame(rows, columns=["part", "bytes", "held", "how we know"], dtype=object)
    table.insert(2, "MiB", [None if size is None else round(size / 2**20, 2) for size in table["bytes"]])
    return table.set_index("part")


def _io_bytes(engine: Engine, mode: str) -> int | None:
    """Bytes of all inputs (`mode` "Input") or outputs ("Output") of the largest profile; None when one is unknown."""
    if mode == "Output" and any(len(port.profiles) > 1 for port in engine.ports):
        return None  # TensorRT tells their shape for the first profile only
    sizes = []
    for port in (port for port in engine.ports if port.mode == mode):
        shapes = [profile[2] for profile in port.profiles] or [port.shape]
        tensors = [Tensor(port.name, tuple(shape), port.dtype).nbytes for shape in shapes]
        sizes.append(None if None in tensors else max(tensors))  # type: ignore[type-var]
    return None if None in sizes or not sizes else sum(sizes)  # type: ignore[arg-type]


def _context(engine: Engine) -> list[tuple[str, int | None, str, str]]:
    """The memory of one execution context: activations, and what is reserved beyond them."""
    reserved, held, log = engine.activation_bytes, "one copy a context", "TensorRT's log: Total Activation Memory"
    try:
        alive = liveness(engine).peak_bytes
    except ProfileError:
        return [("activations and scratch", reserved, held, log + ", at the largest shape")]
    beyond = None if reserved is None else reserved - alive
    return [
        ("activations", alive, held, "the most alive at once, from the list of layers"),
        ("scratch and gaps", beyond, held, log + ", less the activations"),
    ]
