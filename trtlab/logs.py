"""Where in a text or log is the first cause? Logs of trtexec, Polygraphy, ONNX Runtime, Python; of any length."""

from __future__ import annotations

import io
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from trtlab.errors import Cause, Diagnosis
from trtlab.files import data_file
from trtlab.messages import CAUSES, CONSEQUENCES, NOISE, WARNINGS, Rule, meaning, plain
from trtlab.tables import shape_text

_LONGEST, _FEW, _SHORT, _DIFFERENT, _MOST = 20_000, 3, 200, 5_000, 3  # characters, lines (twice), kinds of them, causes
with data_file("log_lines.toml").open("rb") as _file:
    _SAYS, _WORDS, _AT = tomllib.load(_file).values()
_INTEREST, _ALWAYS, _MARKS = _WORDS["interest"], _WORDS["always"], _WORDS["marks"]
_NODES = tuple(map(re.compile, _SAYS.pop("nodes")))
_LINE = {name: re.compile(text) for name, text in _SAYS.items()}


def diagnose_text(text: str) -> Diagnosis:
    """The Diagnosis of what TensorRT, ONNX or a tool printed; without a fix when the message is not a known one."""
    return diagnose_lines(match[0] for match in re.finditer(r"[^\n]+", text))


def diagnose_lines(lines: Iterable[str]) -> Diagnosis:
    """The same of a log that is read line by line, of which at most a few hundred are kept."""
    reading = _Reading()
    for line in lines:
        reading.take(line)
    return reading.diagnosis()


def lines_of(stream: BinaryIO) -> Iterator[str]:
    """The lines of a log in UTF-8 or UTF-16, whatever bytes are in it; a line without end comes in pieces."""
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)  # type: ignore[type-var]
    start = buffered.peek(64)[:64]
    marked = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb": "utf-8-sig"}.get(start[:2], "")
    encoding = marked or ("utf-16-le" if start[1:40:2].count(0) > 10 else "utf-8")
    text = io.TextIOWrapper(buffered, encoding, errors="replace", newline=None)
    return iter(lambda: text.readline(_LONGEST), "")


@dataclass
class _Found:
    rule: Rule
    cause: Cause
    node: str
    line: int


@dataclass
class _Reading:
    """What a log has said so far."""

    found: list[_Found] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # the first lines
    unknown: list[str] = field(default_factory=list)  # the first error that no rule knows
    unknown_line: int = 0
    different: set[str] = field(default_factory=set)
    line: int = 0
    settled: int = 0  # how many of `found` belong to a run that failed
    failed: bool = False
    quiet: str = ""  # a line that says that nothing failed, or one that is no error
    tensorrt: bool = False  # is TensorRT named?
    trouble: bool = False  # is there a word for a failure?
    other: bool = False  # is there more than the warnings that a rule knows?
    open: bool = False  # may the next line belong to `unknown`?
    frame: bool = False
    skipped: str = ""  # what was said last of a tactic that was skipped
    above: str = ""  # a message that the next line may go on with, as wide as `width`, from line `began`
    width: int = 0
    began: int = 0
    warned: bool = False
    node: str = ""
    op: str = ""

    def take(self, line: str) -> None:
        """Read the next line."""
        self.line += 1
        if self.line > _SHORT and self._is_dull(line):
            self.open, self.above = False, ""
            return
        line = _LINE["colour"].sub("", line[:_LONGEST]).rstrip()
        self.tensorrt = self.tensorrt or bool(_LINE["tensorrt"].search(line))
        if self._is_frame(line) or self._is_verdict(line) or not line.strip() or _LINE["shell"].search(line):
            return
        start = _LINE["start"].match(line)
        head, message = (line[: start.end()], line[start.end() :]) if start else ("", line)
        message, *later = (
            _LINE["later"].split(message, maxsplit=1) if any(mark in message for mark in _MARKS) else [message]
        )
        levels = _LINE["level"].findall(head)
        self._locate(message if head.strip() else line)
        level = levels[-1] if levels else "W" if _LINE["warns"].search(message) else ""
        level = "E" if level.endswith("ERROR") or (level[:1] == "I" and self._is_grave(message, level)) else level[:1]
        self._weigh(message, level)
        self.above = "" if head.strip() else self.above
        self._unwrap(message if head.strip() else line, level, len(line))
        for rest in later:
            self.line -= 1
            self.take(rest)

    def _is_dull(self, line: str) -> bool:
        """Can this line of a long log be passed over?"""
        if not self.above and not any(word in line for word in _INTEREST):
            return True
        start = line[:60]
        weightless = "[V]" in start or "[I]" in start or len(self.different) > _DIFFERENT
        return weightless and not any(word in line for word in _ALWAYS)

    def _is_frame(self, line: str) -> bool:
        """Is this line code, quoted in the traceback of Python?"""
        quoted, self.frame = self.frame and line.startswith((" ", "\t")), 'File "' in line and ", line " in line
        return quoted or self.frame

    def _is_verdict(self, line: str) -> bool:
        """Is this line a command, or the verdict about one? What a run said that passed in the end is forgotten."""
        if _LINE["passed"].search(line):
            del self.found[self.settled :]
            self.unknown, self.quiet, self.other, self.open = [], line, True, False
            self.different.clear()
        elif _LINE["failed"].search(line):
            self.settled, self.failed = len(self.found), True
        elif not _LINE["command"].search(line):
            return False
        return True

    def _locate(self, line: str) -> None:
        """Note the node that the parser is at."""
        for pattern in _NODES if any(word in line for word in ("ode", "ame", "op_")) else ():
            if match := pattern.search(line):
                told = match.groupdict()
                self.node = told.get("node") or ("" if "makes" in told else self.node)
                self.op = told.get("op") or self.op

    def _weigh(self, message: str, level: str) -> None:
        """Keep what a message of a severity (its first letter, or "") tells."""
        if len(self.kept) < _SHORT:
            self.kept.append(message)
        if level and level in "VID" and not _LINE["tells"].search(message):
            self.quiet, self.other, self.open = self.quiet or message, True, False
            return
        self.skipped = message if "Skipping tactic" in message else self.skipped
        if not self._is_new(message + self.node + level):
            return
        if known := meaning(message, self.node, self.op, warning=level == "W"):
            if known[0].after_its_reason:  # forget the line before
                self.found = [one for one in self.found if one.line < self.line - 1]
                self.unknown = self.unknown if self.unknown_line < self.line - 1 else []
            rule, cause = known
            if self.skipped and rule.after_tactics:
                cause = replace(cause, evidence=f"{cause.evidence}\n{plain(self.skipped)}")
            self._add(_Found(rule, cause, self.node, self.line))
            self.other |= known[0].kind != WARNINGS
            self.quiet = self.quiet or (message if level == "W" else "")
            self.open = False
            if known[0].needs_tensorrt:  # perhaps it is no cause
                self._wonder(message, level)
        elif level == "W":
            self.quiet, self.other = self.quiet or message, True
        elif _LINE["announces"].search(message):
            self.trouble |= bool(_LINE["trouble"].search(message))
        else:
            self.other |= bool(level) or not (self.found and self.found[-1].rule.kind == WARNINGS)
            self._wonder(message, level)

    def _is_new(self, message: str, most: int = _DIFFERENT) -> bool:
        key = re.sub(r"\d+", "", message)
        if key in self.different or len(self.different) > most:
            return False
        self.different.add(key)
        return True

    def _is_grave(self, message: str, level: str) -> bool:
        """Does a line of information tell an error all the same? Where TensorRT writes [I] it means it."""
        known = meaning(message) if level == "INFO" and self._is_new(f"{message} I", _DIFFERENT // 2) else None
        return bool(_LINE["grave"].search(message)) or (known is not None and known[0].kind == CAUSES)

    def _unwrap(self, message: str, level: str, width: int) -> None:
        """Look at a message that was broken at some width together with its beginning, for rules that fit no part."""
        above, whole = self.above, ""
        if above:
            whole = f"{above}{'' if self.width in (80, 100, 120, 132) else ' '}{message}"
            known = meaning(whole, self.node, self.op, self.warned) if self._is_new(whole) else None
            before = [one for one in self.found if one.line < self.began]
            part = {one.rule: one.cause.text for one in self.found[len(before) :]}.get(known[0]) if known else None
            if known and part != known[1].text and (not part or above[-1] not in ".)!"):
                self.found = before
                self.unknown = self.unknown if self.unknown_line < self.began else []
                self._add(_Found(*known, self.node, self.began))
        elif level in ("E", "F", "!", "W") or (not level and _LINE["breaks"].search(message)):
            whole, self.began, self.warned = message, self.line, level == "W"
        self.above, self.width = whole if 50 <= width <= 132 and len(whole) < 600 else "", width

    def _add(self, new: _Found) -> None:
        same = [old for old in self.found if (old.rule, old.cause.evidence) == (new.rule, new.cause.evidence)]
        known = any(not new.node or old.node == new.node for old in same)
        if same and not known and not same[0].node:
            same[0].cause, same[0].node = new.cause, new.node
        elif not known:
            self.found.append(new)

    def _wonder(self, message: str, level: str) -> None:
        """Keep the first error that no rule knows, with the lines without a severity that follow it."""
        self.trouble |= bool(_LINE["trouble"].search(_LINE["names"].sub("", message)))
        if (level or _LINE["breaks"].search(message)) and not self.unknown:
            self.unknown, self.unknown_line, self.open = [message], self.line, True
        elif self.open and not level and len(self.unknown) < _SHORT:
            self.unknown.append(message)
        else:
            self.open = False

    def diagnosis(self) -> Diagnosis:
        """What all of it means."""
        causes = self._told(CAUSES) or ([] if self.unknown else self._told(NOISE))
        lines = [one.line for one in self.found if one.rule.kind == CONSEQUENCES]
        if not causes and not (self.unknown and lines and self.unknown_line < lines[0]):  # an unknown cause of these
            for cause in self._told(CONSEQUENCES):
                words = f"{cause.text} The reason is not in this text: {cause.fix}"
                return Diagnosis(words, cause.evidence, reference=cause.reference)
            causes = [] if self.other or self.trouble or self.failed else self._told(WARNINGS)
        if causes:
            return Diagnosis.of(causes[:_MOST])
        healthy = self.quiet or (self.line > _FEW and not self.trouble and "\ufffd" not in "".join(self.kept))
        if healthy and not (self.unknown or self.failed or (self.trouble and self._told(WARNINGS))):
            return Diagnosis("Nothing failed in this text.", plain(self.quiet))
        said = self.unknown or self.kept
        return Diagnosis("trtlab does not know this message.", "\n".join(filter(None, map(plain, said))))

    def _told(self, kind: str) -> list[Cause]:
        found = [one for one in self.found if one.rule.kind == kind and (self.tensorrt or not one.rule.needs_tensorrt)]
        placed = {one.rule for one in found if one.node}
        kept = [one for one in found if one.node or one.rule not in placed]  # the same again, but where it is
        return list({one.cause.text: one.cause for one in reversed(kept)}.values())[::-1]


_READS = re.compile(r"\[(.*?) -> \(([-\d, ]*)\)\[(\w+)\]\]")


def place_of_parser(messages: Sequence[str]) -> str:
    """What the parser was at when the log ends: " at node 'conv1' (Conv)", " at weight 'w1'", or ""."""
    for message in reversed(messages):
        for kind, pattern in map(dict.values, _AT):
            if match := re.match(pattern, message):
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
