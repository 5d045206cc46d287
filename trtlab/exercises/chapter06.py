"""The exercises of chapter 06, dynamic shapes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from trtlab.exercises import Exercise

if TYPE_CHECKING:
    import numpy as np
    import onnx

Answer = tuple[bool, str]
BATCHES = (1, 2, 5, 8)


def exercises() -> list[Exercise]:
    """06.1: which profiles build and then fail? 06.2: free a model of its batch. 06.3: three profiles for traffic."""
    return [
        Exercise(
            "06.1",
            (
                "The image is halved and doubled. Which sides come back as they were?",
                "TensorRT checks one of min, opt and max so strictly that the build ends. Which profile does that hit?",
                "A range holds more sizes than its corners; lab.profiles.check(up, four['a']) looks between them.",
            ),
            _built_and_failing,
        ),
        Exercise(
            "06.2",
            (
                "Which weights hold a 2 that is the batch? lab.profiles.check(stuck, …) names one node, then the next.",
                "Reshape computes one size by itself where you write -1.",
                "Shape<end=1>(x) is the batch; Concat it with [1, 16], and Expand the token to that shape.",
            ),
            _freed,
        ),
        Exercise(
            "06.3",
            (
                "The last max must hold the longest request; each min is the max before it, plus one.",
                "Padding is counted in tokens: a cut pays where many requests lie just behind it.",
                "lab.profiles.suggest finds the best cuts for a fixed count=.",
            ),
            _three_profiles,
        ),
    ]


def upsampler() -> onnx.ModelProto:
    """The network of 06.1: an image is halved, doubled and added to itself."""
    from trtlab.toys import toy

    return toy(
        "u (float[N,3,H,W] x) => (float[N,3,H,W] y) { d = MaxPool<kernel_shape=[2,2],strides=[2,2]>(x)"
        ' u = Resize<mode="nearest">(d,,scales)  y = Add(u, x) }',
        scales=[1.0, 1.0, 2.0, 2.0],
    )


FOUR = {"a": (16, 32, 64), "b": (16, 33, 64), "c": (16, 32, 65), "d": (32, 32, 32)}  # min, opt, max side


def _built_and_failing(answer: Iterable[str]) -> Answer:
    from trtlab.profiles import answers, check

    letters = {str(letter).strip().lower() for letter in answer}
    unknown = sorted(letters - set(FOUR))
    if unknown:
        return False, f"There is no profile {unknown[0]!r}: give the letters of `four`."
    model = upsampler()
    shapes = [{"x": tuple((1, 3, side, side) for side in sides)} for sides in FOUR.values()]
    told = answers([(model, one) for one in shapes])
    built = {letter for letter, one in zip(FOUR, told, strict=True) if one.built}
    failing = {letter for letter, one in zip(FOUR, shapes, strict=True) if len(check(model, one))}
    if letters - built:
        return (
            False,
            "For one of these TensorRT gives no engine at all: which of the three shapes does it work through?",
        )
    if letters - failing:
        return False, "In one of these every size of the range runs: how many sizes does it hold?"
    if letters != built & failing:
        return False, "What you named is right, but not all: look also at the sizes that are no corner."
    return True, "Right: opt alone is checked so that the build ends; everything else you learn at run time."


def stuck() -> onnx.ModelProto:
    """The network of 06.2: a token and a Reshape that know the batch of the export."""
    from trtlab.toys import toy

    return toy(
        "stuck (float[N,8,16] x) => (float[N,32] y)"
        " { c = Concat<axis=1>(cls, x)   r = Reshape(c, flat)   y = MatMul(r, w) }",
        cls=(2, 1, 16), flat=[2, 144], w=(144, 32),
    )  # fmt: skip


def _freed(answer: onnx.ModelProto) -> Answer:
    import numpy as np
    import onnx

    from trtlab.profiles import check

    if not isinstance(answer, onnx.ModelProto):
        return False, f"The answer is a model (an onnx.ModelProto, as toy() makes it), not {type(answer).__name__}."
    names = [[value.name for value in ports] for ports in (answer.graph.input, answer.graph.output)]
    weights = {tensor.name for tensor in answer.graph.initializer}
    if [[name for name in names[0] if name not in weights], names[1]] != [["x"], ["y"]]:
        return False, "The model should take x and give y, nothing else."
    found = check(answer, {"x": ((1, 8, 16), (2, 8, 16), (8, 8, 16))})
    if len(found):
        return False, found[0].mistake
    numbers = np.random.default_rng(0).normal(size=(max(BATCHES), 8, 16)).astype(np.float32)
    for batch in BATCHES:
        x = numbers[:batch]
        given, truth = _run(answer, x), _truth(x)
        if given.shape != truth.shape:
            return False, f"At batch {batch} y has the shape {given.shape}, it should be {truth.shape}."
        if not np.allclose(given, truth, atol=1e-4):
            return (
                False,
                f"At batch {batch} y differs by up to {np.abs(given - truth).max():.2g}: are the weights the same?",
            )
    return True, "Every batch from 1 to 8 runs, with the same numbers."


def _truth(x: np.ndarray) -> np.ndarray:
    """What the stuck model gives to each row when the row's token is the first one."""
    import numpy as np
    import onnx

    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in stuck().graph.initializer}
    token = np.broadcast_to(weights["cls"][:1], (len(x), 1, 16))
    product: np.ndarray = np.concatenate([token, x], axis=1).reshape(len(x), 144) @ weights["w"]
    return product


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the verdict says what is wrong
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0])


def _three_profiles(answer: Any, observed: Any) -> Answer:
    from trtlab.models import transformer_encoder
    from trtlab.profiles import check, read_shapes, suggest

    model = transformer_encoder().onnx()
    profiles = read_shapes(answer)
    if not 1 <= len(profiles) <= 3:
        return False, f"Your server holds one to three profiles, not {len(profiles)}."
    found = check(model, profiles)
    if not found.ok:
        return False, next(finding.mistake for finding in found if finding.verdict == "fix")
    ranges = [(profile["input_ids"][0][1], profile["input_ids"][2][1]) for profile in profiles]
    odd = [high for _, high in ranges if high % 8]
    if odd:
        return False, f"A max of {odd[0]} is not a multiple of 8."
    lengths = [int(shape[1]) for shape in observed["input_ids"]]
    lost = [length for length in lengths if not any(low <= length <= high for low, high in ranges)]
    if lost:
        return False, f"{len(lost)} of the requests fit no profile, the first has {lost[0]} tokens."
    done = sum(min(high for low, high in ranges if low <= length <= high) for length in lengths)
    padding, best = done / sum(lengths) - 1, suggest(model, observed, multiple=8, count=3).padding
    if padding > 1.05 * best:
        return False, f"Every request fits, and padding adds {100 * padding:.0f}% to the work: three can do better."
    return True, f"Every request fits, and padding adds {100 * padding:.0f}% to the work."
