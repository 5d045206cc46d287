"""Is this export the network I meant? One row a question: what was found, on which node or tensor, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from trtlab.onnx_model import read_model

if TYPE_CHECKING:
    import pandas as pd

    from trtlab.onnx_model import Model

MARKS = {"ok": "✓", "look": "?", "fix": "✗"}
# In the middle between JupyterLab's white and its dark #111111: at least 4 to 1 against both.
COLOURS = {"ok": "#15866F", "look": "#A06A00", "fix": "#CB3F78"}


@dataclass(frozen=True)
class Check:
    """One question about a model. `verdict` is "ok", "look" (may be meant) or "fix"; `found` names what and where."""

    name: str
    verdict: str
    found: str
    advice: str = ""

    @property
    def ok(self) -> bool:
        """False when something must be fixed."""
        return self.verdict != "fix"

    @property
    def mark(self) -> str:
        """✓ for "ok", ? for "look", ✗ for "fix"."""
        return MARKS[self.verdict]

    def __str__(self) -> str:
        return f"{self.mark} {self.name}: {self.found}" + (f" → {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class Checklist:
    """Every check of one model, in a fixed order; iterate over them, or ask for one: `found["unused inputs"]`."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """True when nothing must be fixed."""
        return not self.problems

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that say "fix"."""
        return tuple(check for check in self.checks if check.verdict == "fix")

    @property
    def remarks(self) -> tuple[Check, ...]:
        """The checks that say "look": nothing is broken, but it may not be what you meant."""
        return tuple(check for check in self.checks if check.verdict == "look")

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __len__(self) -> int:
        return len(self.checks)

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"{name!r}; the checks are {', '.join(check.name for check in self.checks)}")

    def table(self) -> pd.DataFrame:
        """The same as a DataFrame: check, verdict, found, advice."""
        import pandas as pd

        rows = [(check.name, check.verdict, check.found, check.advice) for check in self.checks]
        return pd.DataFrame(rows, columns=["check", "verdict", "found", "advice"])

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks))

    def __repr__(self) -> str:
        return f"<Checklist: {len(self)} checks, {len(self.problems)} to fix, {len(self.remarks)} to look at>"

    def _repr_html_(self) -> str:
        left = "style='text-align:left;vertical-align:top'"
        head = "".join(f"<th {left}>{word}</th>" for word in ("", "check", "found", "what to do"))
        rows = "".join(
            f"<tr><td {left}><b style='color:{COLOURS[check.verdict]}'>{MARKS[check.verdict]}</b></td>"
            + "".join(f"<td {left}>{escape(text)}</td>" for text in (check.name, check.found, check.advice))
            + "</tr>"
            for check in self.checks
        )
        return f"<table><tr>{head}</tr>{rows}</table>"


def checklist(model: Model) -> Checklist:
    """Look for what makes an export differ from the network that was meant, without running or compiling it.

    `model` is a path, bytes or a ModelProto, which is not changed. Raises ModelError when it is no ONNX model.
    """
    from trtlab.checklist_rules import RULES, Facts

    facts = Facts(read_model(model))
    return Checklist(tuple(_check(name, rule, advice, facts) for name, rule, advice in RULES))


def _check(name: str, rule: Callable[..., tuple[str, str]], advice: str, facts: object) -> Check:
    verdict, found = rule(facts)
    return Check(name, verdict, found, "" if verdict == "ok" else advice)
