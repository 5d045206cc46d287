"""What is wrong with a profile: one finding a mistake, and shapes that work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from trtlab.checklist import COLOURS, MARKS

if TYPE_CHECKING:
    import pandas as pd

    from trtlab.profiles.shapes import Profile


@dataclass(frozen=True)
class Finding:
    """One mistake: what and where, what to do, and what TensorRT does with it.

    `verdict` is "fix", or "look" where it may be meant; `input` and `axis`, `node` and `tensor` say where, as far as
    they apply; `profile` counts from 0.
    """

    mistake: str
    fix: str
    tensorrt: str
    input: str = ""
    axis: int | None = None
    node: str = ""
    tensor: str = ""
    profile: int = 0
    verdict: str = "fix"

    @property
    def silent(self) -> bool:
        """True when TensorRT may build all the same: nobody hears of it before the engine runs."""
        return not self.tensorrt.startswith(
            ("set_shape", "add_optimization_profile", "build_serialized", "TensorRT-RTX")
        )

    def __str__(self) -> str:
        return f"{MARKS[self.verdict]} {self.mistake} → {self.fix}"


@dataclass(frozen=True)
class Findings:
    """Every finding on a model's profiles; `proposal` is what to pass as shapes= instead, None where none was found."""

    findings: tuple[Finding, ...]
    proposal: Profile | list[Profile] | None

    @property
    def ok(self) -> bool:
        """True when nothing must be fixed."""
        return all(finding.verdict != "fix" for finding in self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, index: int) -> Finding:
        return self.findings[index]

    @property
    def table(self) -> pd.DataFrame:
        """A row a finding: verdict, profile, where, mistake, tensorrt, fix."""
        import pandas as pd

        columns = ["verdict", "profile", "where", "mistake", "tensorrt", "fix"]
        rows = [(one.verdict, one.profile, _where(one), one.mistake, one.tensorrt, one.fix) for one in self]
        return pd.DataFrame(rows, columns=columns)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.findings), f"proposal: {self.proposal}"])

    def __repr__(self) -> str:
        return f"<Findings: {sum(one.verdict == 'fix' for one in self)} to fix, {len(self)} in all>"

    def _repr_html_(self) -> str:
        left, good = "style='text-align:left;vertical-align:top'", COLOURS["ok"]
        proposal = f"<p>shapes that work: <code>{escape(str(self.proposal))}</code></p>"
        if not self.findings:
            return f"<p><b style='color:{good}'>✓</b> Nothing is wrong with these profiles.</p>{proposal}"
        head = "".join(f"<th {left}>{word}</th>" for word in ("", "where", "mistake", "TensorRT", "what to do"))
        rows = "".join(
            f"<tr><td {left}><b style='color:{COLOURS[one.verdict]}'>{MARKS[one.verdict]}</b></td>"
            + "".join(f"<td {left}>{escape(text)}</td>" for text in (_where(one), one.mistake, one.tensorrt, one.fix))
            + "</tr>"
            for one in self
        )
        return f"<table><tr>{head}</tr>{rows}</table>" + (proposal if self.proposal is not None else "")


def _where(finding: Finding) -> str:
    """The place in two or three words."""
    if finding.node:
        return f"node {finding.node}"
    axis = f", dimension {finding.axis}" if finding.axis is not None else ""
    return f"input {finding.input}{axis}" if finding.input else f"profile {finding.profile}"
