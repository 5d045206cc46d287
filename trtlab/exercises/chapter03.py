"""The exercises of chapter 03, builder, runtime, context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtlab.exercises import Exercise

if TYPE_CHECKING:
    import onnx

Answer = tuple[bool, str]
_BUDGET = 2**30  # bytes, in 03.1


def exercises() -> list[Exercise]:
    """03.1: how many contexts fit? 03.2: write a config."""
    return [
        Exercise(
            "03.1",
            (
                "Look at the first picture of the chapter: what does a context own, and what does the engine own?",
                "Take the weights off the 1 GiB once. What is left is for activations.",
                "batch8.weight_bytes and batch8.activation_bytes are bytes; 1 GiB is 2**30 of them.",
            ),
            _contexts,
        ),
        Exercise(
            "03.2",
            (
                "num_compute_capabilities says how many targets there are, set_compute_capability(target, index) each.",
                "max_aux_streams counts the streams beside the main one.",
                "The section on verbosity names the three levels; gpu('RTX 3090').target is a build target.",
            ),
            _config,
        ),
    ]


def _contexts(answer: int) -> Answer:
    from trtlab.build import build
    from trtlab.models import efficientnet_lite0

    if isinstance(answer, bool) or not isinstance(answer, int):
        return False, f"The answer is a whole number, not {type(answer).__name__}."
    engine = build(efficientnet_lite0().onnx(), shapes={"x": (8, 3, 224, 224)}, progress=False)
    weights, activations = engine.weight_bytes or 0, engine.activation_bytes or 1
    truth = (_BUDGET - weights) // activations
    if answer == truth:
        return True, f"Weights once, {weights / 2**20:.0f} MiB, and {truth} times {activations / 2**20:.0f} MiB."
    if answer == _BUDGET // (weights + activations):
        return False, "That would be so many engines: a context brings no weights of its own."
    needed = (weights + answer * activations) / 2**20
    if answer > truth:
        return False, f"{answer} contexts and the weights would take {needed:,.0f} MiB; there are 1,024."
    return False, f"{answer} contexts and the weights take {needed:,.0f} MiB: one more would still fit."


_CHECKS = {
    "config.num_compute_capabilities == 2": "There should be two targets.",
    "{config.get_compute_capability(i) for i in range(2)} == "
    "{trt.ComputeCapability.SM86, trt.ComputeCapability.SM120}": "The two targets are not those of the two cards.",
    "config.max_aux_streams == 0": "TensorRT may still add streams to the main one.",
    "config.profiling_verbosity == trt.ProfilingVerbosity.NONE": "The layers would still tell their names.",
}


def _config(answer: str) -> Answer:
    from trtlab.settings import try_setting

    if not isinstance(answer, str):
        return False, f"The answer is text with lines of Python, not {type(answer).__name__}."
    checks = "\n".join(f"assert {check}, {says!r}" for check, says in _CHECKS.items())
    trial = try_setting(_products(), f"{answer}\n{checks}", gpu="RTX 4090")
    if trial.engine is None:
        return False, f"{trial.said.removeprefix('AssertionError: ')}"
    return True, f"It builds, in {trial.plan_bytes:,} bytes for both cards."


def _products() -> onnx.ModelProto:
    from trtlab.toys import toy

    return toy(
        "two (float[64,256] x) => (float[64,256] a, float[64,256] b) { a = MatMul(x, w1) b = MatMul(x, w2) }",
        w1=(256, 256),
        w2=(256, 256),
    )
