"""The exercise of chapter 00, start here."""

from __future__ import annotations

from trtlab.exercises import Exercise


def exercises() -> list[Exercise]:
    """00.1: in how many kernels of the digit CNN do a convolution and a residual addition run together?"""
    return [
        Exercise(
            "00.1",
            (
                "engine.fate(model) has a row per node; nodes with the same layer run together.",
                "Which layers hold both a Conv and an Add? Two sets and their intersection are enough.",
            ),
            _convolutions_with_addition,
        )
    ]


def _convolutions_with_addition(answer: int) -> tuple[bool, str]:
    from trtlab import models
    from trtlab.build import build

    if isinstance(answer, bool) or not isinstance(answer, int):
        return False, f"The answer is a whole number, not {type(answer).__name__}."
    path = models.digit_cnn().onnx()
    fate = build(path, shapes={"x": (8, 1, 28, 28)}, progress=False).fate(path)
    together = set(fate[fate.op == "Conv"].layer) & set(fate[fate.op == "Add"].layer)
    if answer == len(together):
        return (
            True,
            "Each residual addition runs in the kernel of the convolution before it; none is a kernel of its own.",
        )
    if answer < len(together):
        return False, f"There are more than {answer}: look at the rows with op == 'Add' and the layer beside each."
    return False, f"{answer} is too many: count only the layers that hold both a Conv and an Add."
