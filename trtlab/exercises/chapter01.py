"""The exercises of chapter 01, from PyTorch to ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtlab.exercises import Exercise

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import torch
    from torch import Tensor

    from trtlab.profiles import Shapes

Answer = tuple[bool, str]
_TOLERANCE = 1e-4
_WORDS = {"float16": "FP16", "float64": "FP64"}  # NumPy's names of types, and this course's


def exercises() -> list[Exercise]:
    """01.1: export a clumsy model well. 01.2: use onnxsim safely. 01.3: a loop with an `if` that exports."""
    return [
        Exercise(
            "01.1",
            (
                "checklist(answer) says which lines of the class are to blame, one row at a time.",
                "The temperature may be a float32 buffer, and forward() needs no labels. What about .eval()?",
                'The batch is dynamic when torch.onnx.export gets dynamic_shapes=({0: "batch"},).',
            ),
            _well_exported,
        ),
        Exercise(
            "01.2",
            (
                "What TensorRT cannot read is made by one pass of onnxsim's optimizer; the page names it.",
                "onnxsim.simplify has an argument that takes a list of passes to leave out, and another that turns the "
                "whole optimizer off and folds constants all the same.",
                "The first of them is called skipped_optimizers.",
            ),
            _safely_simplified,
        ),
        Exercise(
            "01.3",
            (
                "No loop: most of PyTorch's functions work on all rows at once. Compute both results for all of them.",
                "torch.where(condition, a, b) chooses; here the condition needs one truth value a row, not one in all.",
                "x.sum(1) has the shape (batch,), and x (batch, features). What does keepdim=True do?",
            ),
            _branch_free,
        ),
    ]


def _well_exported(answer: Any) -> Answer:
    """The digit CNN, its logits divided by 2, as a faultless ONNX model."""
    import torch

    from trtlab import datasets, models
    from trtlab.checklist import checklist

    model = _onnx(answer)
    found = checklist(model)
    if not found.ok:
        return False, f"The checklist still says: {found.problems[0].name}, {found.problems[0].found}."
    if found["batch dimension"].verdict != "ok":
        return False, f"It takes only one batch size ({found['batch dimension'].found})."
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        return False, "It should take one input, the digits, and give one output, the logits."
    digits = datasets.digits("test").images[:5]
    expected = models.digit_cnn().torch_module()(torch.from_numpy(digits)).numpy() / 2
    right, message = _agrees(model, digits, expected, "the logits of the digit CNN divided by the temperature")
    if not right:
        return False, message
    kernels = _kernels(model, {model.graph.input[0].name: digits[:1].shape})
    if isinstance(kernels, str):
        return False, f"The numbers are right, but TensorRT refuses it: {kernels}"
    return True, f"{message} The checklist has nothing to fix, and TensorRT builds {kernels} kernels."


def _safely_simplified(answer: Any) -> Answer:
    """The encoder at a fixed size, with fewer nodes, and still one that TensorRT builds."""
    import torch

    from trtlab import models
    from trtlab.checklist import checklist

    if isinstance(answer, tuple):
        return False, "onnxsim.simplify returns the model and whether its check went well: keep the model only."
    model, network = _onnx(answer), models.transformer_encoder()
    tokens = network.sample(2)["input_ids"]
    before = fixed_encoder()
    foreign = checklist(model)["operators"]
    if not foreign.ok:
        unheard = " (onnxsim skips over a misspelt name of a pass without a word.)" * ("Attention" in foreign.found)
        return False, f"It holds operators that are {foreign.found}.{unheard}"
    if len(model.graph.node) >= len(before.graph.node):
        return False, f"It has {len(model.graph.node)} nodes, no fewer than the exported model."
    expected = network.torch_module()(torch.from_numpy(tokens)).numpy()
    right, message = _agrees(model, tokens, expected, "the hidden states of the encoder")
    if not right:
        return False, message
    kernels = _kernels(model)
    if isinstance(kernels, str):
        return False, f"TensorRT still refuses it: {kernels}"
    nodes = f"{len(before.graph.node)} nodes became {len(model.graph.node)}"
    return True, f"{nodes}, and TensorRT builds {kernels} kernels. (With which tool, a file does not tell.)"


def _kernels(model: onnx.ModelProto, shapes: Shapes = None) -> int | str:
    """How many kernels TensorRT builds, or why it refuses."""
    from trtlab.build import build
    from trtlab.errors import BuildError

    try:
        return len(build(model, shapes=shapes, progress=False).kernels)
    except BuildError as error:
        return error.diagnosis.evidence or error.message


def fixed_encoder() -> onnx.ModelProto:
    """The transformer encoder at batch 2 and 16 tokens as the exporter wrote it, before any optimizer."""
    import torch

    from trtlab import models
    from trtlab.quiet import quiet

    network = models.transformer_encoder()
    tokens = torch.from_numpy(network.sample(2)["input_ids"])
    with quiet(), torch.inference_mode():
        program = torch.onnx.export(
            network.torch_module(), (tokens,), input_names=["input_ids"], output_names=["hidden_states"],
            dynamo=True, optimize=False, verbose=False,
        )  # fmt: skip
    assert program is not None
    return program.model_proto


def _branch_free(answer: Any) -> Answer:
    """A module that doubles each row whose sum is positive and takes the tanh of the others, for any batch."""
    import torch

    from trtlab.checklist import checklist

    if isinstance(answer, type) or not isinstance(answer, torch.nn.Module):
        return False, "The answer is a module, such as Rowwise(), not a class or a result."
    wrong = _wrong_rows(answer.eval())
    if wrong:
        return False, wrong
    model = _with_dynamic_batch(answer)
    if isinstance(model, str):
        return False, f"It cannot be exported with a dynamic batch: {model}"
    found = checklist(model)
    if found["control flow"].verdict != "ok":
        return False, f"The exported model still branches: {found['control flow'].found}."
    picks = found["data-dependent shapes"]
    if picks.verdict != "ok":
        return False, f"It picks rows, and how many the data decides ({picks.found}): TensorRT-RTX refuses that."
    x = _rows(5, 4)
    right, message = _agrees(model, x.numpy(), expected_rows(x).numpy(), "what PyTorch computes")
    if not right:
        return False, f"{message} Something was decided during the export."
    kernels = _kernels(model, {model.graph.input[0].name: ((1, 4), (2, 4), (8, 4))})
    if isinstance(kernels, str):
        return False, f"The numbers are right, but TensorRT refuses it: {kernels}"
    return True, "Both results are computed and one is kept for each row: no loop, no If, any batch."


def _with_dynamic_batch(module: torch.nn.Module) -> onnx.ModelProto | str:
    """The module's export for any batch, or the exporter's reason against it."""
    import torch

    from trtlab.quiet import quiet

    try:
        with quiet(), torch.inference_mode():
            program = torch.onnx.export(
                module, (_rows(2, 4),), dynamo=True, verbose=False, input_names=["x"], dynamic_shapes=({0: "batch"},)
            )
    except Exception as error:
        lines = [line for line in str(error.__cause__ or error).splitlines() if line.strip()]
        return next((line.strip(" -") for line in lines if "static shape" in line), lines[0])
    assert program is not None
    return program.model_proto


def _wrong_rows(module: torch.nn.Module) -> str:
    """What PyTorch itself already gets wrong, as a sentence; "" when nothing."""
    import torch

    for x in (*(_rows(*size) for size in ((2, 4), (1, 3), (4, 4), (5, 2))), torch.tensor([[1.0, -1.0], [3.0, -3.0]])):
        batch, features = x.shape
        try:
            with torch.inference_mode():
                got = module(x)
        except Exception as error:
            return f"For an input of {batch} × {features} it stops: {str(error).strip().splitlines()[0]}."
        if not isinstance(got, torch.Tensor) or got.shape != x.shape:
            return f"For an input of {batch} × {features} its result has another shape."
        bad = (~torch.isclose(got, expected_rows(x)).all(dim=1)).sum()
        if bad and not x.sum(dim=1).any():
            return "Where the sum of a row is exactly 0 it computes something else: 0 is not positive."
        if bad:
            return f"For an input of {batch} × {features} it computes something else in {bad} of {batch} rows."
    return ""


def _rows(batch: int, features: int) -> Tensor:
    """Rows with both signs in each, whose sums are negative and positive in turn."""
    import torch

    row = torch.linspace(-1, 2, features)
    return torch.stack([row * (1 + index / 8) * (-1) ** (index + 1) for index in range(batch)])


def expected_rows(x: Tensor) -> Tensor:
    """What exercise 01.3 asks for, with the loop and the `if` that cannot be exported."""
    import torch

    return torch.stack([row * 2 if row.sum() > 0 else row.tanh() for row in x])


def _onnx(answer: Any) -> onnx.ModelProto:
    from trtlab.onnx_model import read_model

    return read_model(getattr(answer, "model_proto", answer))  # what torch.onnx.export returns, a ModelProto or a path


def _agrees(model: onnx.ModelProto, x: np.ndarray, expected: np.ndarray, what: str) -> Answer:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (got, *_) = session.run(None, {session.get_inputs()[0].name: x})
    if got.dtype != expected.dtype:
        return False, f"Its output is {_WORDS.get(got.dtype.name, got.dtype.name)}, not FP32."
    if got.shape != expected.shape:
        return False, f"Its output has the shape {got.shape}, expected is {expected.shape}."
    worst = float(np.abs(got - expected).max())
    if not worst < _TOLERANCE:
        return False, f"It does not compute {what}: the largest difference is {worst:.2g}."
    return True, f"It agrees with PyTorch to {worst:.0e}."
