"""The exercises of chapter 04, FP16 and BF16."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from trtlab.exercises import Exercise

if TYPE_CHECKING:
    import onnx
    import torch

    from trtlab.engine import Engine

Answer = tuple[bool, str]


def exercises() -> list[Exercise]:
    """04.1: what may FP16 square? 04.2: a unit vector without FP32. 04.3: where do the FP32 nodes run?"""
    return [
        Exercise(
            "04.1",
            (
                "FP16's largest number is np.finfo(np.float16).max.",
                "You look for the last whole number n with n · n at or below that.",
            ),
            _largest_square,
        ),
        Exercise(
            "04.2",
            (
                "The result does not change when all features of a row are divided by the same number.",
                "Divide before you square, by a number that makes the features neither large nor tiny.",
                "A fixed number, such as 64, helps large features and ruins small ones, as does one number for "
                "a mixed batch. Take one from the row itself.",
            ),
            _unit_length,
        ),
        Exercise(
            "04.3",
            (
                "precision.to_half(model, 'fp16', keep=[…]) takes the names; auto.kept.node has four of the five.",
                "engine.fate(model) gives each node its kernel. Pass the converted model.",
            ),
            _in_fp32,
        ),
    ]


def _largest_square(answer: int) -> Answer:
    import numpy as np

    if isinstance(answer, bool) or not isinstance(answer, int | np.integer):
        return False, f"The answer is a whole number, not {type(answer).__name__}."
    largest = float(np.finfo(np.float16).max)
    truth = int(np.sqrt(largest))
    if answer == truth:
        stored = f"{truth}² is stored as {float(np.float16(truth**2)):,.0f}, {truth + 1}² as infinity"
        return True, f"{stored}: squaring halves the exponents that are safe."
    if answer == int(largest):
        return False, "FP16 can hold that number, but the question is about its square."
    if answer > truth:
        return False, f"{answer}² is {answer**2:,}, and that is past the end."
    return False, f"{answer}² is {answer**2:,}: there is room above it."


def _unit_length(answer: Callable[[torch.Tensor], torch.Tensor]) -> Answer:
    import torch

    if not callable(answer):
        return False, f"The answer is a function of one tensor, not {type(answer).__name__}."
    batches = _feature_batches()
    for where, features in batches.items():
        with _Types() as seen:
            found = answer(features.clone())
        problem = _not_half(found, features, seen.types) or _not_unit(found, features, where)
        if problem:
            return False, problem
    try:
        model = _exported(answer, next(iter(batches.values())))
    except torch.onnx.OnnxExporterError:
        return (
            False,
            "Right in PyTorch, which cannot export it: does it look at values to decide what to do?",
        )
    for where, features in batches.items():
        problem = _not_unit(_in_true_half(model, features), features, where)
        if problem:
            ops = ", ".join(node.op_type for node in model.graph.node)
            return False, f"Right in PyTorch, which may add up in FP32 inside, but not exported ({ops}). {problem}"
    return True, "Right at every scale and in a mixed batch, in PyTorch and exported, and FP16 throughout."


def _feature_batches() -> dict[str, torch.Tensor]:
    """FP16 features of shape (16, 64), by where they lie; in the last batch large and small rows alternate."""
    import torch

    made = torch.Generator().manual_seed(0)
    sizes = {f"around {size:g}": torch.tensor(size) for size in (1.0, 1000.0, 0.001)}
    sizes["around 1000 and around 0.001 in one batch"] = torch.tensor([1000.0, 0.001]).repeat(8)[:, None]
    return {where: (size * torch.rand(16, 64, generator=made)).half() for where, size in sizes.items()}


def _not_half(found: object, features: torch.Tensor, types: set[torch.dtype]) -> str:
    """What keeps a result from being an FP16 tensor of the features' shape that was computed in FP16, or ""."""
    import torch

    if not isinstance(found, torch.Tensor) or found.shape != features.shape:
        return f"It should return a tensor of shape {tuple(features.shape)}, like its input."
    wide = types & {torch.float32, torch.float64, torch.bfloat16}
    if wide or found.dtype != torch.float16:
        return f"Something in it computes in {str(next(iter(wide), found.dtype)).removeprefix('torch.')}, not in FP16."
    return ""


def _not_unit(found: torch.Tensor, features: torch.Tensor, where: str) -> str:
    """What keeps the rows of `found` from being the features' unit vectors, or ""."""
    wide = features.double()
    truth = wide / wide.pow(2).sum(dim=1, keepdim=True).sqrt()
    if not found.isfinite().all():
        return f"For features {where} it gives infinity or NaN: something became too large, or a length zero."
    error = float((found.double() - truth).abs().max())
    if error > 2e-3:
        lengths = found.double().pow(2).sum(dim=1).sqrt()
        return f"For features {where} the vectors have lengths of {lengths.min():.2g} to {lengths.max():.2g}."
    return ""


def _exported(answer: Callable[[torch.Tensor], torch.Tensor], features: torch.Tensor) -> onnx.ModelProto:
    """The function as an ONNX model, converted to FP16 as the chapter does it; inputs and outputs stay FP32."""
    import torch

    from trtlab.models.export import export
    from trtlab.precision import to_half

    class Model(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return answer(features)

    sample = {"features": features.float().numpy()}
    return to_half(export(Model().eval(), sample, {"features": tuple(features.shape)}, ("unit",)), "fp16").model


def _in_true_half(model: onnx.ModelProto, features: torch.Tensor) -> torch.Tensor:
    """The model's result with every operation rounded to FP16."""
    import torch

    from trtlab.numerics import run

    return torch.from_numpy(run(model, {"features": features.float().numpy()}, true_half=True)["unit"])


class _Types:
    """Records the floating-point types of everything that PyTorch computes inside the block."""

    def __init__(self) -> None:
        self.types: set[torch.dtype] = set()

    def __enter__(self) -> _Types:
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode

        types = self.types

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func, kinds, args=(), kwargs=None):  # type: ignore[no-untyped-def]
                result = func(*args, **(kwargs or {}))
                parts = result if isinstance(result, list | tuple) else (result,)
                types.update(part.dtype for part in parts if isinstance(part, torch.Tensor))
                return result

        self._mode = Watch()
        self._mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._mode.__exit__(*error)


def _in_fp32(answer: str | Iterable[str], model: onnx.ModelProto) -> Answer:
    names = {answer} if isinstance(answer, str) else {str(getattr(one, "name", one)) for one in answer}
    engine, kept = _careful(model)
    nodes = {layer.name: set(layer.onnx_nodes) for layer in engine.kernels}
    layers = engine.fate(model).set_index("node")["layer"]
    truth = {str(layers[node]) for node in kept}
    unknown, wrong = names - nodes.keys(), (names & nodes.keys()) - truth
    if not names:
        return False, "The list is empty, and the FP32 nodes must run somewhere."
    if unknown:
        five = "AutoCast's four nodes and ReduceSum"
        return False, f"The engine has no kernel called {min(unknown)!r}: has yours {five} in FP32, and only those?"
    if wrong:
        work = ", ".join(sorted(nodes[min(wrong)])) or "no node"
        return False, f"{min(wrong)} does the work of {work}: there is no kept node in it."
    if names != truth:
        return False, f"{len(names)} named, and what you named is right; but some FP32 nodes run elsewhere."
    return True, "ReduceSum in FP32 as well, and a tensor in FP32 is stored between two kernels."


def _careful(model: onnx.ModelProto) -> tuple[Engine, list[str]]:
    """The engine of the chapter's network with five nodes in FP32, and their names."""
    from trtlab.build import build
    from trtlab.machine import load_tensorrt
    from trtlab.precision import to_half

    kept = ["ReduceSum", "Mul", "ReduceSum_1", "Sqrt", "Div"]
    gpu = "RTX 4090" if hasattr(load_tensorrt(), "ComputeCapability") else None
    half = to_half(model, "fp16", keep=kept)
    return build(half.model, gpu=gpu, shapes={"x": (512, 1, 28, 28)}, progress=False), kept
