"""What does a message of TensorRT, ONNX or a tool mean? One table of those that are known, and their clean text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from trtlab.errors import Diagnosis
from trtlab.tables import shape_text

_OPERATORS = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md"
_SHAPES = "TensorRT Developer Guide, Working with Dynamic Shapes"
_MATRIX = "TensorRT support matrix"
_NEWER = "choose a newer target or another precision."

# (what the message says, what it means, what to do, where to read). The first that matches wins; {0} is a group.
_KNOWN = (
    (r"No Op registered for (\S+) with domain_version of (\d+)",
     "ONNX opset {1} has no operator '{0}'.",
     "check its spelling, or give a custom operator a domain of its own; 'polygraphy inspect capability' lists what "
     "TensorRT supports.", _OPERATORS),
    (r"Plugin not found|getPluginCreator|checkFallbackPluginImporter|[Nn]o importer registered",
     "TensorRT has no importer and no plugin for an operator of this model.",
     "replace it by standard ONNX operators (a newer opset often does), or cut it off with 'polygraphy surgeon "
     "extract' and run it elsewhere; 'polygraphy inspect capability' shows which nodes are the trouble.", _OPERATORS),
    (r"must resolve to a build-time constant",
     "A node computes what TensorRT must know at build time, such as the axes of a reduction.",
     "fold the constants: export with optimize=True (torch.onnx.export's default), or run onnxslim.", _OPERATORS),
    (r"topologically sorted|not output of any previous nodes|is not an output of any node",
     "A node or output reads a tensor that nothing before it writes.",
     "check the spelling of that tensor; 'polygraphy surgeon sanitize --toposort' mends a mere wrong order.",
     "https://onnx.ai/onnx/repo-docs/IR.html"),
    (r"no optimization profile has been defined",
     "The model has inputs with dynamic dimensions, and no optimization profile says which sizes to expect.",
     'pass shapes={"input": (min, opt, max)} with one full shape each.', _SHAPES),
    (r"MIN<=OPT<=MAX|minShape|kMIN dimensions|Invalid optimization profiles",
     "An optimization profile does not satisfy min <= opt <= max, or contradicts the model's fixed dimensions.",
     "compare the profile with the input's shape, dimension by dimension.", _SHAPES),
    (r"Cannot compile operation '([^']*)' for Turing \(SM75\): (.*?) is not supported",
     "Turing (SM75) cannot run '{0}' in this precision: {1} is not supported by TensorRT-RTX there.",
     "convert the model to FP16 (or quantize it to INT8 on an FP16 base), or choose a target from SM80 on.",
     "TensorRT for RTX support matrix"),
    (r"Cannot compile for target\(s\) (.*?), because the model contains HW-specific datatypes: (.*)",
     "The model computes in {1}, which {0} does not have: BF16 and INT4 need SM80 or newer, FP8 SM89, FP4 SM120.",
     _NEWER, _MATRIX),
    (r"(BF16|BFloat16|FP8|FP4|INT4|Int4)\b.*(?:not supported|unsupported|requires)",
     "This target has no {0}: BF16 and INT4 need SM80 or newer, FP8 SM89, FP4 SM120.", _NEWER, _MATRIX),
    (r"(?:[Nn]ot supported|[Uu]nsupported).*(?:SM ?\d+|compute capability|target|platform|hardware|architecture)",
     "The target cannot run an operation of this model in its precision.", _NEWER, _MATRIX),
    (r"[Oo]ut ?[Oo]f ?[Mm]emory|bad_alloc|Requested amount of GPU memory|Insufficient memory|workspace",
     "A layer needs more memory than it may use.",
     "make the largest shape (batch, image side, sequence) smaller, or raise the workspace limit where you set one.",
     "TensorRT Developer Guide, Workspace memory"),
    (r"DOUBLE|double|float64|FLOAT64",
     "The model computes in float64, which TensorRT does not run.",
     "export it in float32 (model.float() before torch.onnx.export).", "TensorRT Developer Guide, Data types"),
    (r"cudaError ?35|CUDA driver version is insufficient|no CUDA-capable device|CUDA_ERROR_NO_DEVICE|cuInit",
     "There is no NVIDIA GPU or its driver is too old: engines can be built here, not run.",
     "build for a target with gpu=..., and run the engine on a machine with that GPU.", ""),
    (r"[Ss]erialization assertion|[Mm]agic tag|version tag|kVERSION|was created with a different version",
     "The engine file was made by another TensorRT version or is damaged.",
     "build the engine again with the TensorRT that runs it.", "TensorRT Developer Guide, Version compatibility"),
    (r"(?:[Dd]imension|[Ss]hape)s? must match|[Bb]roadcast|[Ee]lementwise.* dimension|[Ii]ncompatible (?:dim|shape)",
     "The shapes of two tensors at this node do not fit together.",
     "run onnx.shape_inference.infer_shapes(model, strict_mode=True), and check the node's inputs and weights.",
     "https://onnx.ai/onnx/operators/"),
)  # fmt: skip

# What the compiler calls element types and targets, and what this course calls them.
_TYPE_NAMES = {"b16": "BF16", "fp8_e4m3": "FP8", "fp4_e2m1": "FP4", "fp4": "FP4", "i4": "INT4", "int4": "INT4"}
_TYPES = re.compile(r"\b(?:b16|fp8_e4m3|fp4_e2m1|fp4|i4|int4)\b|\bsm(?=\d)")

# Lines that come with every failure on a machine without a GPU, and lines that only announce the next one.
_NOISE, _ANNOUNCES = re.compile(r"catchCudaError|cudaError 35"), re.compile(r"(?:\[\d+\] )?Invalid Node - ")

# "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] <what it says>. In f at g.cpp:2)"
_HEAD = re.compile(r"^.*?Error Code \d+: [\w ]*?\((?:\[[\w.]+:\d+: \w+\] )?|^\[\w+\]\s+", re.DOTALL)
_TAIL = re.compile(r"\s*\(?\bIn \S+ at \S+:\d+.*$|\s*\(cudaError \d+.*$", re.DOTALL)
_MEMORY = re.compile(r"Error Code \d+: OutOfMemory")
_CUDA = re.compile(r"Error Code \d+: [\w ]+\(In .*?\(cudaError \d+: ([^)]*)\)", re.DOTALL)


def diagnose_text(text: str) -> Diagnosis:
    """The Diagnosis of what TensorRT, ONNX or a tool printed; without a fix when the message is not a known one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = min(lines, key=lambda one: (bool(_NOISE.search(one)), bool(_ANNOUNCES.match(one))), default="")
    evidence = plain(line)
    for pattern, cause, fix, reference in _KNOWN:
        match = re.search(pattern, evidence) or re.search(pattern, line)
        if match:
            groups = [_TYPES.sub(lambda name: _TYPE_NAMES.get(name[0], "SM"), group or "") for group in match.groups()]
            return Diagnosis(cause.format(*groups), evidence, fix, reference)
    return Diagnosis("This message is not one that trtlab knows.", evidence)


def plain(message: str) -> str:
    """A message of TensorRT or ONNX on one line, without its error code and its position in their source."""
    cuda = _CUDA.search(message)
    words = " ".join((cuda[1] if cuda else _HEAD.sub("", _TAIL.sub("", message))).split())
    if words.endswith(")") and words.count(")") > words.count("("):
        words = words[:-1]  # it was opened by the head
    return ("Out of memory: " if _MEMORY.search(message) else "") + words.rstrip(". ")


# What the parser says that it is at.
_AT = (
    (re.compile(r"ModelImporter\.cpp:\d+: ERROR: (?P<name>.*):\d+ In function importInput:"), "input"),
    (re.compile(r"(?:Parsing node|Static check for parsing node): (?P<name>.*) \[(?P<op>[^\[\]]*)\]$"), "node"),
    (re.compile(r"Importing initializer: (?P<name>.*)$"), "weight"),
    (re.compile(r"Adding network input: (?P<name>.*) with dtype: "), "input"),
)
_READS = re.compile(r"\[(.*?) -> \(([-\d, ]*)\)\[(\w+)\]\]")


def place_of_parser(messages: Sequence[str]) -> str:
    """What the parser was at when the log ends: " at node 'conv1' (Conv)", " at weight 'w1'", or ""."""
    for message in reversed(messages):
        for pattern, kind in _AT:
            if match := pattern.match(message):
                op = match.groupdict().get("op")
                return f" at {kind} '{match['name']}'" + (f" ({op})" if op else "")
    return ""


def place_of_node(messages: Iterable[str], name: str, op: str = "") -> str:
    """A node and what it reads: " at node 'fc1' (MatMul), which reads 'x' (4×16 FLOAT) and 'w1' (17×32 FLOAT)"."""
    pattern = re.compile(rf"{re.escape(name)} \[([^\[\]]*)\] inputs: (.*)", re.DOTALL)
    match = next(filter(None, map(pattern.match, messages)), None)
    op = op or (match[1] if match else "")
    found = _READS.findall(match[2]) if match else []
    reads = [f"'{tensor}' ({shape_text(shape.split(', '))} {kind})" for tensor, shape, kind in found]
    if len(reads) > 4:
        reads[3:] = [f"{len(reads) - 3} more"]
    words = f", which reads {' and '.join(filter(None, (', '.join(reads[:-1]), reads[-1])))}" if reads else ""
    return f" at node '{name}'" + (f" ({op})" if op else "") + words
