"""Where in a text or log is the first cause? Logs of trtexec, Polygraphy, ONNX Runtime, Python; of any length."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from trtlab.errors import Cause, Diagnosis
from trtlab.messages import CAUSES, CONSEQUENCES, NOISE, WARNINGS, Rule, meaning, plain
from trtlab.tables import shape_text

_LONGEST, _FEW, _SHORT, _DIFFERENT, _MOST = 20_000, 3, 200, 5_000, 3  # characters, lines (twice), kinds of them, causes
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\0\r]")

# What begins a line before its message: time, severity and who says it; and the severity in it.
_LEVELS = r"VERBOSE|DEBUG|INFO|WARNING|WARN|ERROR|INTERNAL_ERROR|CRITICAL|FATAL"
_START = re.compile(
    rf"""^(?: [\s>]+ | [\w.-]+\s+\|\s(?=\[)
    | \[(?: [VIWEF!] | TRT | TensorRT | (?:[\d/:.\ T-]{{8,}})? \s* (?:{_LEVELS})? )\]:?
    | \[(?: [VIWEF]:onnxruntime[^\]]* | libprotobuf[^\]]* | \s*(?:{_LEVELS})\s*:\d+(?:@[\d.]+)? )\]:?
    | (?:{_LEVELS})(?=:|\s-|\s\[)[:\s-]* | -\ (?={_LEVELS})
    | \d{{4}}-\d\d-\d\d[\ T][\d:.,]+ | \d\d:\d\d:\d\d[\d.,]* | [VIWEF]\d{{4}}\ [^\]]{{0,90}}\] )*""",
    re.VERBOSE,
)
_LEVEL = re.compile(rf"\b(?:{_LEVELS})\b|(?<=\[)[VIWEF!](?=[\]:])|\b[VIWEF](?=\d{{4}} )")
# What a shell, a scheduler or a progress bar prints around a program: its times, its exit code, the next prompt.
_SHELL = re.compile(
    r"^(?:(?:real|user|sys)\s+\d+m[\d.,]+s$|make(?:\[\d+\])?: \*\*\*|[\w.-]+@[\w.-]+:\S*[$#]|\s*\d+%\|"
    r"|Process finished with|Command (?:exited with|terminated by)|srun: .* Exited with|wandb: |Prompt executed in)"
)
# What says that a text is about TensorRT.
_TENSORRT = re.compile(
    r"[Tt]ensor[Rr][Tt]|\b(?:TRT|trt)|nvinfer|nvonnxparser|Error Code \d+: |execute_async|enqueueV|pycuda"
)
_WARNS = re.compile(r"^(?:\S+: )?\w*Warning: ")

# Words of which every line of interest has one: the rest of a long log is passed over without a further look.
_WORDS = (
    "rror", "RROR", "[E]", "[F]", "[!]", "FAIL", "PASSED", "ail", "xception", "ssert", "ot ", "No ", "no ", "n't",
    "ust ", "out of", "xceed", "Unknown", "nsupported", "UNSUPPORTED", "None", "parsing node", "ame: ", "op_type",
    "Invalid", "plugin", "[W", "arning", "Killed", "bad_alloc", "ismatch", "Detected", "differ", "annot", "nullptr",
    "nullBinding", "File ", "Provider",
)  # fmt: skip
_ALWAYS = ("PASSED", "FAILED", "arsing node")  # what counts in a line of any severity
_COMMAND = re.compile(
    r"^(?:&&&& |\$ )|\bCommand(?: line)?: |^(?:# )?(?:\S*[/\\])?(?:trtexec|polygraphy|python3?)(?:\.exe)? .*-"
)
_PASSED = re.compile(r"&&&& PASSED|PASSED \| (?:Runtime|Command)")
_FAILED = re.compile(r"&&&& FAILED|FAILED \| (?:Runtime|Command)")
_ANNOUNCES = re.compile(
    r"While parsing node number|--- (?:Begin|End) node|Invalid Node - |In function \w+:$|^(?:Node )?name: "
    r"|During handling|Traceback \(|ssertion engine != nullptr failed|^[\s^~*=-]*$"
)
_BREAKS = re.compile(
    r"^[\w.]*(?:Error|Exception|Fail|Interrupt)\b:?|\bError Code \d+: |terminate called|Segmentation fault"
    r"|core dumped|^Aborted"
)
_TROUBLE = re.compile(
    r"error|fail|exception|invalid|cannot|could not|unable|n't\b|not (?:found|supported)|abort|killed", re.IGNORECASE
)
_NODES = tuple(map(re.compile, (
    r'While parsing node number \d+ \[(?P<op>[^\s\]]+)(?: -> "(?P<makes>[^"]*)")?',
    r"In node -?\d+ with name: (?P<node>.*?) and operator: (?P<op>\w*) \(", r"Invalid Node - (?P<node>\S+)",
    r"In node -?\d+ \((?:import|check)(?!Model|Input|Init|Fallback)(?P<op>[A-Z]\w+)\)",
    r'^(?: {4})?(?:Node name: |name: ")(?P<node>[^"]+)"?$', r'^(?: {4})?op_type: "(?P<op>\w+)"',
    r"(?:Parsing node|Static check for parsing node): (?P<node>.*) \[(?P<op>[^\[\]]*)\]$",
)))  # fmt: skip


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
    node: str = ""
    op: str = ""

    def take(self, line: str) -> None:
        """Read the next line."""
        self.line += 1
        if self.line > _SHORT and self._is_dull(line):
            self.open = False
            return
        line = _COLOUR.sub("", line[:_LONGEST]).rstrip()
        self.tensorrt = self.tensorrt or bool(_TENSORRT.search(line))
        if self._is_frame(line) or self._is_verdict(line) or not line.strip() or _SHELL.search(line):
            return
        start = _START.match(line)
        head, message = (line[: start.end()], line[start.end() :]) if start else ("", line)
        levels = _LEVEL.findall(head)
        self._locate(message if head.strip() else line)
        level = levels[-1] if levels else "W" if _WARNS.search(message) else ""
        self._weigh(message, "E" if level.endswith("ERROR") else level[:1])

    def _is_dull(self, line: str) -> bool:
        """Can this line of a long log be passed over?"""
        if not any(word in line for word in _WORDS):
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
        if _PASSED.search(line):
            del self.found[self.settled :]
            self.unknown, self.quiet, self.other, self.open = [], line, True, False
            self.different.clear()
        elif _FAILED.search(line):
            self.settled, self.failed = len(self.found), True
        elif not _COMMAND.search(line):
            return False
        return True

    def _locate(self, line: str) -> None:
        """Note the node that the parser is at."""
        for pattern in _NODES if any(word in line for word in ("ode", "ame", "op_")) else ():
            if match := pattern.search(line):
                told = match.groupdict()
                if "makes" in told:
                    self.node, self.op = "", told["op"]
                self.node = told.get("node") or self.node
                self.op = told.get("op") or self.op

    def _weigh(self, message: str, level: str) -> None:
        """Keep what a message of a severity (its first letter, or "") tells."""
        if len(self.kept) < _SHORT:
            self.kept.append(message)
        if level and level in "VID":
            self.quiet, self.other, self.open = self.quiet or message, True, False
            return
        key = re.sub(r"\d+", "", message) + self.node + level
        if key in self.different or len(self.different) > _DIFFERENT:
            return
        self.different.add(key)
        if known := meaning(message, self.node, self.op, warning=level == "W"):
            self._add(_Found(*known, self.node, self.line))
            self.other |= known[0].kind != WARNINGS
            self.quiet = self.quiet or (message if level == "W" else "")
            self.open = False
            if known[0].needs_tensorrt:  # perhaps it is no cause
                self._wonder(message, level)
        elif level == "W":
            self.quiet, self.other = self.quiet or message, True
        elif not _ANNOUNCES.search(message):
            self.other |= not (self.found and self.found[-1].rule.kind == WARNINGS)
            self._wonder(message, level)

    def _add(self, new: _Found) -> None:
        same = [old for old in self.found if (old.rule, old.cause.evidence) == (new.rule, new.cause.evidence)]
        if not new.node or any(old.node == new.node for old in same):
            if same:
                return
        elif same and not same[0].node:
            same[0].cause, same[0].node = new.cause, new.node
            return
        self.found.append(new)

    def _wonder(self, message: str, level: str) -> None:
        """Keep the first error that no rule knows, with the lines without a severity that follow it."""
        self.trouble |= bool(_TROUBLE.search(message))
        if (level or _BREAKS.search(message)) and not self.unknown:
            self.unknown, self.unknown_line, self.open = [message], self.line, True
        elif self.open and not level and len(self.unknown) < _SHORT:
            self.unknown.append(message)
        else:
            self.open = False

    def diagnosis(self) -> Diagnosis:
        """What all of it means."""
        causes = self._told(CAUSES) or ([] if self.unknown else self._told(NOISE))
        if not causes and not self._unknown_comes_first():
            for cause in self._told(CONSEQUENCES):
                words = f"{cause.text} The reason is not in this text: {cause.fix}"
                return Diagnosis(words, cause.evidence, reference=cause.reference)
            causes = [] if self.other else self._told(WARNINGS)
        if causes:
            return Diagnosis.of(causes[:_MOST])
        healthy = self.quiet or (self.line > _FEW and not self.trouble and "\ufffd" not in "".join(self.kept))
        if healthy and not self.unknown and not self.failed:
            return Diagnosis("Nothing failed in this text.", plain(self.quiet))
        said = self.unknown or self.kept
        return Diagnosis("trtlab does not know this message.", "\n".join(filter(None, map(plain, said))))

    def _told(self, kind: str) -> list[Cause]:
        found = [one for one in self.found if one.rule.kind == kind and (self.tensorrt or not one.rule.needs_tensorrt)]
        placed = {one.rule for one in found if one.node}
        kept = [one for one in found if one.node or one.rule not in placed]  # the same again, but where it is
        return list({one.cause.text: one.cause for one in reversed(kept)}.values())[::-1]

    def _unknown_comes_first(self) -> bool:
        lines = [one.line for one in self.found if one.rule.kind == CONSEQUENCES]
        return bool(self.unknown and lines and self.unknown_line < lines[0])


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
