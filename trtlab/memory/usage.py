"""What takes the memory of a GPU when an engine runs, part by part, and how we know."""

from __future__ import annotations

import math
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
    host = re.search(r"Total Host Persistent Memory: (\d+) bytes", engine.log)
    held_here = "one copy a context, in the computer's memory"
    rows = [
        ("weights", engine.weight_bytes, "one copy an engine", "TensorRT's log: Total Weights Memory"),
        *_context(engine),
        ("inputs", io_bytes(engine, "Input"), "your buffers", "shapes and types of the engine's inputs"),
        ("outputs", io_bytes(engine, "Output"), "your buffers", "shapes and types of the engine's outputs"),
        ("host", host and int(host[1]), held_here, "TensorRT's log: Host Persistent"),
        ("CUDA context, kernels", None, "one a process", "needs a GPU: cudaMemGetInfo before and after"),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["part", "bytes", "held", "how we know"], dtype=object)
    table.insert(2, "MiB", [None if size is None else round(size / 2**20, 2) for size in table["bytes"]])
    return table.set_index("part")


def io_bytes(engine: Engine, mode: str) -> int | None:
    """Bytes of all inputs (`mode` "Input") or outputs ("Output") of the largest profile; None when one is unknown."""
    ports = [port for port in engine.ports if port.mode == mode]
    if not ports or (mode == "Output" and any(len(port.profiles) > 1 for port in engine.ports)):
        return None  # TensorRT tells the shape of outputs for the first profile only
    total = 0
    for port in ports:
        shapes = [profile[2] for profile in port.profiles] or [port.shape]
        size = Tensor(port.name, tuple(max(shapes, key=math.prod)), port.dtype).nbytes
        if size is None:
            return None
        total += size
    return total


def _context(engine: Engine) -> list[tuple[str, int | None, str, str]]:
    """The memory of one execution context: activations, and what is reserved beyond them."""
    reserved, held, log = engine.activation_bytes, "one copy a context", "TensorRT's log: Total Activation Memory"
    try:
        alive = liveness(engine).peak_bytes
    except ProfileError:
        return [("activations and scratch", reserved, held, f"{log}, at the largest shape")]
    beyond = None if reserved is None else reserved - alive
    return [
        ("activations", alive, held, "the most alive at once, from the list of layers"),
        ("scratch and gaps", beyond, held, f"{log}, less the activations"),
    ]
