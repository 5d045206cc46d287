"""Where was TensorRT's parser, and what did the node read that it stopped at? From the build log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_AT = (
    (re.compile(r"ModelImporter\.cpp:\d+: ERROR: (?P<name>.*):\d+ In function importInput:"), "input"),
    (re.compile(r"(?:Parsing node|Static check for parsing node): (?P<name>.*) \[(?P<op>[^\[\]]*)\]$"), "node"),
    (re.compile(r"Importing initializer: (?P<name>.*)$"), "weight"),
    (re.compile(r"Adding network input: (?P<name>.*) with dtype: "), "input"),
)
_READS = re.compile(r"\[(.*?) -> \(([-\d, ]*)\)\[(\w+)\]\]")
_MOST_INPUTS = 4


def place_of_parser(messages: Sequence[str]) -> str:
    """What the parser was at when the log ends: " at node 'conv1' (Conv)", " at weight 'w1'", or ""."""
    for message in reversed(messages):
        for pattern, kind in _AT:
            match = pattern.match(message)
            if match:
                op = match.groupdict().get("op")
                return f" at {kind} '{match['name']}'" + (f" ({op})" if op else "")
    return ""


def place_of_node(messages: Iterable[str], name: str, op: str = "") -> str:
    """A node and what it reads: " at node 'fc1' (MatMul), which reads 'x' (4×16 FLOAT) and 'w1' (17×32 FLOAT)"."""
    pattern = re.compile(rf"{re.escape(name)} \[([^\[\]]*)\] inputs: (.*)", re.DOTALL)
    match = next(filter(None, map(pattern.match, messages)), None)
    op = op or (match[1] if match else "")
    found = _READS.findall(match[2]) if match else []
    reads = [f"'{tensor}' ({'×'.join(shape.split(', ')) or 'scalar'} {kind})" for tensor, shape, kind in found]
    if len(reads) > _MOST_INPUTS:
        reads[_MOST_INPUTS - 1 :] = [f"{len(reads) - _MOST_INPUTS + 1} more"]
    words = f", which reads {' and '.join(filter(None, (', '.join(reads[:-1]), reads[-1])))}" if reads else ""
    return f" at node '{name}'" + (f" ({op})" if op else "") + words
