"""What did TensorRT compile? The layers, tensors and memory of an engine, as frozen data."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from trtlab import tables
from trtlab.errors import AssetError
from trtlab.files import write_atomically
from trtlab.graph import PRODUCTS, Facts, facts_of
from trtlab.onnx_model import Model, node_names

if TYPE_CHECKING:
    import pandas as pd

# Layer types that launch nothing: RTX's bookkeeping, and the inspector's name for a tensor that only changes its label.
BOOKKEEPING = frozenset({"allocate", "deallocate", "shape_call", "signal", "wait", "NoOp"})
# Words in TensorRT's layer types, or in the name that its compiler made up for a kernel -> the kind of work.
_KINDS = {
    "data movement": "^(move|tran|resh|cast|conc|slic|repl|pad)+$"
    "|reformat|noop|shuffle|padding|slice|concat|copy|resize|pose",
    "convolution": "conv|correlation",
    "matrix multiplication": "gemm|matmul|matrixmultiply|fullyconnected",
    "pooling": "pool",
    "normalisation, reduction": "softmax|reduce|norm",
}
_FUSED_ATTENTION = re.compile(r"gemm_mha|fmha|fused_?mha|flash_?att", re.IGNORECASE)
BITS = {
    "FP32": 32, "FP16": 16, "BF16": 16, "FP8": 8, "INT8": 8, "UINT8": 8, "INT4": 4, "FP4": 4,
    "INT32": 32, "INT64": 64, "BOOL": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A tensor at the border of a layer. `shape` has -1 where the size is known only at run time."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    format: str = ""

    @property
    def nbytes(self) -> int | None:
        """Logical size in bytes (no padding), or None when a dimension or the type is unknown."""
        if self.dtype not in BITS or any(size < 0 for size in self.shape):
            return None
        return (math.prod(self.shape) * BITS[self.dtype] + 7) // 8

    def __str__(self) -> str:
        return f"{self.dtype} {tables.shape_text(self.shape)}"


@dataclass(frozen=True)
class Layer:
    """One entry of the compiled engine: usually one GPU kernel, and the ONNX nodes whose work it does.

    `type` is the compiler's own word (`correlation`, `gemm`, `CaskConvolution`, …), `tactic` None where TensorRT leaves
    the kernel to the GPU's first run, `event` what a `signal` of one stream tells a `wait` of another.
    """

    name: str
    type: str
    onnx_nodes: tuple[str, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    constants: tuple[Tensor, ...] = ()
    stream: int = 0
    tactic: str | None = None
    profile: int = 0
    event: int | None = None

    @property
    def is_kernel(self) -> bool:
        """False for bookkeeping (`allocate`, `signal`, `NoOp`, …), which computes nothing."""
        return self.type not in BOOKKEEPING

    @property
    def kind(self) -> str:
        """Its work in the words of the course's palette: convolution, attention (all of it), quantize (Q or DQ), …"""
        if self.name.startswith(("QuantizeLinear", "DequantizeLinear")):
            return "quantize"
        if "mha" in self.type or _FUSED_ATTENTION.search(f"{self.name} {self.tactic or ''}"):
            return "attention"
        made_up = re.fullmatch(r"__myl_(\w+?)_myl\d+_\d+", self.name) if self.type == "kgen" else None
        word = (made_up[1] if made_up else self.type).lower()
        found = next((kind for kind, words in _KINDS.items() if re.search(words, word)), "pointwise")
        # TensorRT 8 runs a fully connected layer as a convolution; only its ONNX node tells.
        product = re.search("gemm|matmul", " ".join(self.onnx_nodes), re.IGNORECASE)
        return "matrix multiplication" if found == "convolution" and product else found

    @property
    def nbytes(self) -> int | None:
        """Bytes read and written once: inputs, constants and outputs; None when a size is unknown."""
        return _total([tensor.nbytes for tensor in (*self.inputs, *self.constants, *self.outputs)])


@dataclass(frozen=True)
class Port:
    """An input or output of the engine, and for an input its (min, opt, max) shapes, one triple a profile."""

    name: str
    mode: str
    dtype: str
    shape: tuple[int, ...]
    profiles: tuple[tuple[tuple[int, ...], ...], ...] = ()

    def __str__(self) -> str:
        ranges = "; ".join(" … ".join(map(tables.shape_text, profile)) for profile in self.profiles)
        tensor = f"{self.name}: {Tensor(self.name, self.shape, self.dtype)}"
        return f"{tensor} ({ranges})" if ranges and -1 in self.shape else tensor


@dataclass(frozen=True, repr=False)
class Engine:
    """What TensorRT compiled; a size that it did not report is None.

    `activation_bytes` is what one execution context reserves for intermediate tensors (of the largest profile),
    `weight_bytes` the constants in the engine, `scratch_bytes` the workspace of the hungriest layer, `network_layers`
    counts what the parser made of the ONNX nodes, and `seconds` is the compiler's own time.
    """

    layers: tuple[Layer, ...]
    ports: tuple[Port, ...] = ()
    activation_bytes: int | None = None
    weight_bytes: int | None = None
    scratch_bytes: int | None = None
    network_layers: int | None = None
    original_layers: int | None = None
    seconds: float | None = None
    compiler: str = ""
    target: str = ""
    log: str = field(default="", repr=False)
    plan: bytes | Path | None = field(default=None, repr=False, compare=False)

    @cached_property
    def kernels(self) -> tuple[Layer, ...]:
        """The layers that launch work on the GPU, of the first profile."""
        return tuple(layer for layer in self.layers if layer.is_kernel and layer.profile == 0)

    @property
    def compiled_by(self) -> str:
        """Who made it: "TensorRT-RTX 1.7.1 for SM89"; "" where nobody says so."""
        return " for ".join(filter(None, (self.compiler, self.target)))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each input that the engine was built for: of the first profile, at its opt."""
        inputs = [port for port in self.ports if port.mode == "Input"]
        found = {port.name: port.profiles[0][1] if port.profiles else port.shape for port in inputs}
        return {name: shape for name, shape in found.items() if -1 not in shape}

    def table(self) -> pd.DataFrame:
        """One row a layer; `KiB` is what the layer reads and writes, missing where a shape is dynamic."""
        import pandas as pd

        columns = "layer type onnx_nodes inputs outputs constants KiB stream tactic profile"
        rows = [
            (one.name, one.type, *(", ".join(map(str, part)) for part in (one.onnx_nodes, one.inputs, one.outputs)),
             len(one.constants), one.nbytes, one.stream, one.tactic, one.profile) for one in self.layers
        ]  # fmt: skip
        table = pd.DataFrame(rows, columns=columns.split())
        return table.assign(KiB=(table["KiB"].astype(float) / 1024).round(1))

    def fate(self, model: Model | Facts) -> pd.DataFrame:
        """One row an ONNX node, in the graph's order: node, op, layer (or None), reason ("" when a layer runs it).

        A node in no layer is `constant` (known at build time), `unreachable` (no output depends on it), `no-op` (its
        output is its input, perhaps with another shape), `shape` (it computes sizes), `condition` (it decides for
        an If or a Loop), `duplicate` (another node computes the same), `cancelled` (a Transpose that others undo),
        `layout` (one at a matrix product, which reads and writes in any order), `in place` (a Concat whose parts are
        written where they belong, as the engine's tensors show) or `unexplained`.
        """
        import pandas as pd

        facts = facts_of(model)
        owner = owners(self, facts)
        names = node_names(facts.graph)
        in_place = _concats_in_place(self, facts)
        constant = {name for name, reason in zip(names, facts.reasons, strict=True) if reason == "constant"}
        rows = []
        for name, node, reason in zip(names, facts.graph.node, facts.reasons, strict=True):
            layer, why = owner.get(name), reason or ("in place" if node.output[0] in in_place else "unexplained")
            # The compiler puts the names of what it computed beforehand on the layer that reads the result.
            runs = layer if layer and (name not in constant or constant.issuperset(layer.onnx_nodes)) else None
            rows.append((name, node.op_type, runs and runs.name, "" if runs else why))
        return pd.DataFrame(rows, columns=["node", "op", "layer", "reason"], dtype=object)  # else None becomes NaN

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the serialized engine for a TensorRT runtime of the same version; returns the path."""
        write_atomically(Path(path), self.plan_bytes(), overwrite=overwrite)
        return Path(path)

    def plan_bytes(self) -> bytes:
        """The serialized engine, as a TensorRT runtime takes it."""
        if self.plan is None:
            raise AssetError("This engine was read from text, so it has no plan.", fix="build() the model.")
        try:
            return self.plan if isinstance(self.plan, bytes) else self.plan.read_bytes()
        except OSError as error:
            raise AssetError("This engine's plan is no longer in the cache.", fix="build the model again.") from error

    def summary(self) -> dict[str, str]:
        """The engine in six lines, {fact: value}; what a bare log does not say is left out."""
        return {
            "compiled by": self.compiled_by,
            "network layers → kernels": f"{self.network_layers or '?'} → {len(self.kernels)}",
            "weights": tables.mib(self.weight_bytes),
            "activations": tables.mib(self.activation_bytes),
            "inputs": "; ".join(str(port) for port in self.ports if port.mode == "Input"),
            "outputs": "; ".join(str(port) for port in self.ports if port.mode == "Output"),
        }

    def __repr__(self) -> str:
        return "Engine(" + str(self).replace("\n", ", ") + ")"

    def __str__(self) -> str:
        return "\n".join(f"{fact}: {value}" for fact, value in self.summary().items() if value)

    def _repr_html_(self) -> str:
        return tables.facts(self.summary())


# Which layer owns a node that several layers name: the one that computes it, not its prologue or epilogue.
_OWNERS = {"correlation": 0, "gemm": 1, "runtime_fusion": 2, "mha": 3}
# A node's step as the name that the compiler makes up for a kernel lists it, such as `__myl_FcMulAddRelu_myl0_7`.
_STEPS = {"BatchNormalization": "MulAdd", "Clip": "MaxMin", "Relu": "Relu"}
# What the compiler adds to the name of an ONNX tensor inside an engine, such as `d_U3.1_myl0` for `d`.
_SUFFIX = r"(?:_U\d+)?(?:\.\d+)?(?:_\d+)?_myl\d+"


def _sides(shape: Iterable[object]) -> list[str]:
    return sorted(str(size) for size in shape if size != 1)


def owners(engine: Engine, facts: Facts | None = None) -> dict[str, Layer]:
    """The one layer that does the work of each node, for the first profile.

    TensorRT names no node on a matrix product that was a 1x1 convolution. With `facts` it is found by its weights, by
    the tensor it reads where several fit; what follows it, by the steps in the name of a kernel beside it.
    """
    first = [layer for layer in engine.layers if layer.profile == 0]
    ranked = sorted(first, key=lambda layer: (_OWNERS.get(layer.type, len(_OWNERS)), not layer.is_kernel))
    found = {node: layer for layer in reversed(ranked) for node in layer.onnx_nodes}
    nameless = [layer for layer in engine.kernels if not layer.onnx_nodes and layer.constants]
    if facts is None or not nameless:
        return found
    nodes = list(zip(node_names(facts.graph), facts.graph.node, facts.reasons, strict=True))
    lost = [(name, node) for name, node, reason in nodes if name not in found and not reason]
    for name, node in (pair for pair in lost if pair[1].op_type in PRODUCTS):
        weights = _sides(facts.shapes.get(node.input[1], (0,)))
        fits = [one for one in nameless if weights in (_sides(part.shape) for part in one.constants)]
        inside = re.escape(node.input[0]) + _SUFFIX
        reads = [one for one in fits if any(re.fullmatch(inside, part.name) for part in one.inputs)]
        found.update((name, one) for one in reads or fits if len(reads or fits) == 1)
    name_of = {node.output[0]: name for name, node, _ in nodes if node.output}
    for name, node in (*lost, *reversed(lost)):
        if name not in found and node.op_type in _STEPS:
            beside = [node.input[0], *(one for reader in facts.readers[node.output[0]] for one in reader.output)]
            layers = [found[name_of[one]] for one in beside[::-1] if name_of.get(one) in found]
            step = rf"__myl_\w*{_STEPS[node.op_type]}\w*_myl\d+_\d+"
            found.update((name, layer) for layer in layers if re.fullmatch(step, layer.name))
    return found


def _concats_in_place(engine: Engine, facts: Facts) -> set[str]:
    """The first outputs of the Concat nodes that `engine` has no work for, by the evidence of its own tensors.

    Several kernels write a tensor of the Concat's name, and their parts add up to the whole that is read; or the Concat
    feeds only others of that kind. Where sizes are dynamic, only the names are compared.
    """
    parts: dict[str, list[int | None]] = defaultdict(list)
    whole = {port.name: Tensor(port.name, port.shape, port.dtype).nbytes for port in engine.ports}
    for layer in engine.kernels:
        for tensor in layer.outputs:
            parts[tensor.name].append(tensor.nbytes)
        for tensor in layer.inputs:  # a part may be read before the rest is written
            whole[tensor.name] = max(whole.get(tensor.name), tensor.nbytes, key=lambda size: size or 0)
    written = [name for name, sizes in parts.items()
               if len(sizes) > 1 and (None in (*sizes, whole.get(name)) or _total(sizes) == whole[name])]  # fmt: skip
    found: set[str] = set()
    for node in reversed(facts.graph.node):
        if node.op_type == "Concat":
            name, follow = node.output[0], facts.readers[node.output[0]]
            joined = follow and all(found & set(reader.output) for reader in follow)
            if joined or any(re.fullmatch(re.escape(name) + f"(?:{_SUFFIX})?", tensor) for tensor in written):
                found.add(name)
    return found


def fused_bytes(engine: Engine) -> int | None:
    """Bytes that the kernels read and write in all; None where a shape is dynamic."""
    return _total([layer.nbytes for layer in engine.kernels])


def _total(sizes: list[int | None]) -> int | None:
    return None if None in sizes else sum(size or 0 for size in sizes)
