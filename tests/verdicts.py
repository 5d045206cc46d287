"""What the tests of every chapter ask of an exercise: that it refuses an answer, and says why."""

from __future__ import annotations

import re

from trtlab import exercises


def refused(name: str, says: str, *answer: object, hides: str = "") -> None:
    """The exercise refuses the answer; `says` are its words, or a pattern, and `hides` words it must not tell."""
    verdict = exercises.get(name).check(*answer)
    assert not verdict
    assert says in verdict.message or re.search(says, verdict.message), verdict.message
    assert not hides or hides not in verdict.message, verdict.message
