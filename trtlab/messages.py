"""What does a message of TensorRT, ONNX or a tool mean? data/messages.toml has the table; here a line is looked up."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from typing import Any

from trtlab.errors import Cause
from trtlab.files import data_file

# Kinds of rules: what is a cause; what comes with every failure on a machine without a GPU; what follows from a cause;
# and what only looks like an error.
CAUSES, NOISE, CONSEQUENCES, WARNINGS = KINDS = ("causes", "noise", "consequences", "warnings")


@dataclass(frozen=True)
class Rule:
    """A pattern that only one cause prints, and what that means; the head of data/messages.toml explains the fields."""

    kind: str
    says: re.Pattern[str]
    cause: str
    fix: str
    see: str = ""
    warned: bool = False
    needs_tensorrt: bool = False
    after_its_reason: bool = False
    after_tactics: bool = False
    proof: str = ""


@cache
def table() -> dict[str, Any]:
    """The table as it is written; its head says what the names mean."""
    with data_file("messages.toml").open("rb") as file:
        return tomllib.load(file)


@cache
def rules() -> tuple[Rule, ...]:
    """Every rule, the first to try first."""
    known = table()
    words = known["words"] | {"removed": "|".join(_removed())}
    found = []
    for kind in KINDS:
        for row in known[kind]:
            says, see = re.compile(_fill(row["says"], words)), row.get("see", "")
            found.append(Rule(**row | {"kind": kind, "says": says, "see": known["references"].get(see, see)}))
    return tuple(found)


def meaning(line: str, node: str = "", op: str = "", warning: bool = False) -> tuple[Rule, Cause] | None:
    """The rule that a line fits, and what it means; `node` and `op` are where the parser is."""
    for rule in rules():
        if warning and not rule.warned and rule.kind != WARNINGS:
            continue
        if match := rule.says.search(line):
            groups = {name.split("__")[0]: text for name, text in match.groupdict().items() if text}
            words = _words({name: _TYPES.sub(_type_name, text) for name, text in groups.items()}, node, op)
            cause, fix = (_fill(_fill(text, words), words) for text in (rule.cause, rule.fix))
            cause = re.sub(r" \(\{\w+\}\)", "", cause)  # a word in brackets that this spelling does not tell
            return rule, Cause(cause, plain(line), fix, rule.see)
    return None


def _words(groups: dict[str, str], node: str, op: str) -> dict[str, str]:
    """What the names in a rule's sentences stand for."""
    op = groups.get("op", op).replace("aten.", "aten::")
    since, now = _removed().get(groups.get("name", ""), ("", ""))
    told = {"way": way_out(op), "since": since, "now": now, "place": node and f" at node '{node}'"}
    return table()["words"] | told | groups | {"op": f"the operator {op}" if op else "an operator of this model"}


def way_out(op: str) -> str:
    """What serves instead of an operator that TensorRT does not import."""
    way = next(row["way"] for row in table()["ways_out"] if re.fullmatch(row["operator"], op))
    return _fill(way, {**table()["words"], "op": op})


@cache
def _removed() -> dict[str, tuple[str, str]]:
    """The names that are gone: since which version, and what serves now."""
    return {name: (str(row["since"]), row["now"]) for row in table()["removed"] for name in row["names"].split()}


def _fill(text: str, words: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda name: words.get(name[1], name[0]), text)


# What the compiler calls element types and targets, and what this course calls them.
_TYPE_NAMES = {"b16": "BF16", "fp8_e4m3": "FP8", "fp4_e2m1": "FP4", "fp4": "FP4", "i4": "INT4", "int4": "INT4"}
_TYPES = re.compile(r"\b(?:b16|fp8_e4m3|fp4_e2m1|fp4|i4|int4)\b|\bsm(?=\d)")


def _type_name(match: re.Match[str]) -> str:
    return _TYPE_NAMES.get(match[0], "SM")


# "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] <what it says>. In f at g.cpp:2)"
_HEAD = re.compile(
    r"^.*?Error Code \d+: [\w ]*?\((?:\[[\w.]+:\d+: \w+\] )?|^\[\w+\]\s+(?!false$)"
    r"|^.*?In node -?\d+ (?:with name: .* and operator: \S* )?\(\w+\): (?:\w+: (?!false$))?",
    re.DOTALL,
)
_TAIL = re.compile(r"\s*\(?\bIn \S+ at \S+:\d+.*$|\s*\(cudaError \d+.*$|(?<=UNSUPPORTED_NODE): false$", re.DOTALL)
_MEMORY = re.compile(r"Error Code \d+: OutOfMemory")
_CUDA = re.compile(r"Error Code \d+: [\w ]+\(In .*?\(cudaError \d+: ([^)]*)\)", re.DOTALL)


def plain(message: str) -> str:
    """A message of TensorRT or ONNX on one line, without its error code and its position in their source."""
    cuda = _CUDA.search(message)
    words = " ".join((cuda[1] if cuda else _HEAD.sub("", _TAIL.sub("", message))).split())
    if words.endswith(")") and words.count(")") > words.count("("):
        words = words[:-1]  # it was opened by the head
    return ("Out of memory: " if _MEMORY.search(message) else "") + words.rstrip(". ")
