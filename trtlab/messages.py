"""The sentence inside a TensorRT message, without the C++ function, file and line that surround it."""

from __future__ import annotations

import re

_FRONT = re.compile(r"^.*?Error Code \d+: [A-Za-z ]+\(")  # "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ("
_PLACE = re.compile(r"^\[[^\]]*\] ")  # "[pass.cpp:337: check_turing_op_compatibility] "
_BACK = re.compile(r"\.(?= ?[A-Z])|\.? +In [A-Za-z:]+ at |\.$")
_CUDA = re.compile(r"cudaError \d+: ([^)]*)")


def sentence(message: str) -> str:
    """What a message says, in its own words: its first sentence, or CUDA's when there is nothing else."""
    inner = _PLACE.sub("", _FRONT.sub("", message))
    cuda = _CUDA.search(inner)
    return cuda[1] if inner.startswith("In ") and cuda else _BACK.split(inner)[0]
