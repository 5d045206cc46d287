"""The exercises of chapter 01, from PyTorch to ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtlab.exercises import Exercise

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch import Tensor

Answer = tuple[bool, str]
_TOLERANCE = 1e-4


def exercises() -> list[Exercise]:
    """01.1: export a clumsy model well. 01.2: use onnxsim safely. 01.3: write an `if` that exports."""
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
                "Which operators does the simplified model hold? Look at node.domain.",
                "onnxsim.simplify takes skipped_optimizers, a list of names; 'onnxsim --list-default-optimizers' "
                "prints most of them.",
                "The pass that makes com.microsoft::Attention is called after what it does: fuse_…",
            ),
            _safely_simplified,
        ),
        Exercise(
            "01.3",
            (
                "Compute both branches, then choose element by element.",
                "torch.where(condition, a, b) takes a condition of any shape that broadcasts, a scalar too.",
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
    return _agrees(model, digits, expected, "the logits of the digit CNN divided by the temperature")


def _safely_simplified(answer: Any) -> Answer:
    """The encoder at a fixed size, with fewer nodes, and still one that TensorRT builds."""
    import torch

    from trtlab import models
    from trtlab.build import build
    from trtlab.checklist import checklist
    from trtlab.errors import BuildError

    if isinstance(answer, tuple):
        return False, "onnxsim.simplify returns the model and whether its check went well: keep the model only."
    model, network = _onnx(answer), models.transformer_encoder()
    tokens = network.sample(2)["input_ids"]
    before = fixed_encoder()
    foreign = checklist(model)["operators"]
    if not foreign.ok:
        return False, f"It holds operators that are {foreign.found}."
    if len(model.graph.node) >= len(before.graph.node):
        return False, f"It has {len(model.graph.node)} nodes, no fewer than the exported model."
    expected = network.torch_module()(torch.from_numpy(tokens)).numpy()
    right, message = _agrees(model, tokens, expected, "the hidden states of the encoder")
    if not right:
        return False, message
    try:
        kernels = len(build(model, progress=False).kernels)
    except BuildError as error:
        return False, f"TensorRT still refuses it: {error.diagnosis.evidence or error.message}"
    return (
        True,
        f"{len(before.graph.node)} nodes became {len(model.graph.node)}, and TensorRT builds {kernels} kernels.",
    )


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
    """A module that doubles x where its sum is positive, and otherwise takes its tanh, without any If."""
    import torch

    from trtlab.checklist import checklist
    from trtlab.quiet import quiet

    if isinstance(answer, type) or not isinstance(answer, torch.nn.Module):
        return False, "The answer is a module, such as Branchless(), not a class or a result."
    bright = torch.linspace(-1, 3, 8).reshape(2, 4)
    for x in (bright, -bright, torch.zeros(2, 4)):
        with torch.inference_mode():
            if not torch.allclose(answer(x), expected_branch(x)):
                return False, f"For an input with the sum {float(x.sum()):g} it computes something else."
    try:
        with quiet(), torch.inference_mode():
            program = torch.onnx.export(answer.eval(), (bright,), dynamo=True, verbose=False, input_names=["x"])
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        return False, f"It cannot be exported: {reason}"
    assert program is not None
    found = checklist(program.model_proto)["control flow"]
    if found.verdict != "ok":
        return False, f"The exported model still branches: {found.found}."
    for x in (bright, -bright):
        right, message = _agrees(program.model_proto, x.numpy(), expected_branch(x).numpy(), "what PyTorch computes")
        if not right:
            return False, f"{message} The branch was decided during the export."
    return True, "Both branches are computed and one is kept: no If, so TensorRT can fuse all of it."


def expected_branch(x: Tensor) -> Tensor:
    """What exercise 01.3 asks for, with the `if` that cannot be exported."""
    return x * 2 if x.sum() > 0 else x.tanh()


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
    if got.shape != expected.shape:
        return False, f"Its output has the shape {got.shape}, expected is {expected.shape}."
    worst = float(np.abs(got - expected).max())
    if not worst < _TOLERANCE:
        return False, f"It does not compute {what}: the largest difference is {worst:.2g}."
    return True, f"It agrees with PyTorch to {worst:.0e}, and the checklist has nothing to fix."
