"""Every control of the course: each is a pure function from choices to a picture, and the controls that call it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trtlab.errors import TrtlabError

if TYPE_CHECKING:
    import onnx
    from ipywidgets import VBox

    from trtlab.models import ReferenceModel

GPUS = ("RTX 4090", "RTX 5090", "RTX 3090", "A100 SXM4 40GB", "L4", "T4", "H100 SXM5 80GB")
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def compiled_picture(network: ReferenceModel, gpu: str, batch: int) -> Any:
    """Compile `network` for `gpu` at a fixed batch and draw which kernel runs which node.

    Raises BuildError where TensorRT cannot, for example FP32 matrix products on a T4.
    """
    from trtlab import draw
    from trtlab.build import build

    path = network.onnx()
    shapes = {name: (batch, *_fixed(shape[1:])) for name, shape in network.inputs.items()}
    engine = build(path, gpu=gpu, shapes=shapes, progress=False)
    memory = f"activations {_mib(engine.activation_bytes)}, weights {_mib(engine.weight_bytes)}"
    title = f"{network.title}, batch {batch}, on {gpu}: {len(engine.kernels)} kernels, {memory}"
    return draw.fusion(engine, path, title=title)


def compiler_explorer(networks: Sequence[ReferenceModel], gpus: Sequence[str] = GPUS) -> VBox:
    """Controls for GPU, batch and network; each change runs the real compiler and draws what it made."""
    import ipywidgets
    from IPython.display import display

    controls = {
        "network": ipywidgets.Dropdown(
            options=[(network.title, network) for network in networks], description="Network"
        ),
        "gpu": ipywidgets.Dropdown(options=gpus, description="GPU"),
        "batch": ipywidgets.SelectionSlider(options=BATCHES, value=1, description="Batch", continuous_update=False),
    }

    def show(**choices: Any) -> None:
        try:
            display(compiled_picture(**choices))
        except TrtlabError as error:
            display(error.diagnosis)

    picture = ipywidgets.interactive_output(show, controls)
    return ipywidgets.VBox([ipywidgets.HBox(list(controls.values())), picture])


def pattern_picture(pattern: str, precision: str, gpu: str) -> Any:
    """Compile a pattern of `toys.PATTERNS` in "FP32" or "FP16" for `gpu` and draw it before and after.

    Raises BuildError where TensorRT cannot, for example FP32 matrix products on a T4.
    """
    from trtlab import draw
    from trtlab.build import build
    from trtlab.toys import PATTERNS

    model = PATTERNS[pattern].model(precision)
    engine = build(model, gpu=gpu, progress=False)
    nodes, kernels = len(model.graph.node), len(engine.kernels)
    many = "kernel" if kernels == 1 else "kernels"
    return draw.before_after(engine, model, title=f"{pattern}, {precision}, on {gpu}: {nodes} nodes, {kernels} {many}")


def pattern_explorer(gpus: Sequence[str] = GPUS) -> VBox:
    """Controls for pattern, precision and GPU; each change runs the real compiler and draws before and after."""
    import ipywidgets
    from IPython.display import display

    from trtlab.toys import PATTERNS, TYPES

    controls = {
        "pattern": ipywidgets.Dropdown(options=tuple(PATTERNS), value="Attention", description="Pattern"),
        "precision": ipywidgets.ToggleButtons(options=tuple(TYPES), description="Precision"),
        "gpu": ipywidgets.Dropdown(options=gpus, description="GPU"),
    }

    def show(**choices: Any) -> None:
        try:
            display(pattern_picture(**choices))
        except TrtlabError as error:
            display(error.diagnosis)

    picture = ipywidgets.interactive_output(show, controls)
    return ipywidgets.VBox([ipywidgets.HBox(list(controls.values())), picture])


def simplified_picture(model: onnx.ModelProto, tool: Callable[[onnx.ModelProto], onnx.ModelProto], name: str) -> Any:
    """Run a simplifier called `name` over `model` and draw the nodes before and after, with what TensorRT says to each.

    Dynamic inputs are built at batch 1. The model itself is not changed.
    """
    import copy

    from trtlab.draw.operations import operations

    models = {"as it is": model, name: tool(copy.deepcopy(model))}
    remarks = {title: _verdict(version) for title, version in models.items()}
    before, after = (len(version.graph.node) for version in models.values())
    return operations(models, f"{name}: {before} nodes become {after}", remarks=remarks)


def simplifier_explorer(
    models: Mapping[str, onnx.ModelProto], tools: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto]]
) -> VBox:
    """Controls for model and simplifier; each change runs the simplifier and the real compiler and draws the result."""
    import ipywidgets
    from IPython.display import display

    controls = {
        "model": ipywidgets.Dropdown(options=tuple(models), description="Model"),
        "tool": ipywidgets.ToggleButtons(options=tuple(tools), description="Simplifier"),
    }

    def show(model: str, tool: str) -> None:
        display(simplified_picture(models[model], tools[tool], tool))

    picture = ipywidgets.interactive_output(show, controls)
    return ipywidgets.VBox([*controls.values(), picture])


def _verdict(model: onnx.ModelProto) -> str:
    """What TensorRT makes of `model`, in two or three words."""
    from trtlab.build import build
    from trtlab.explain import proposed_shapes

    try:
        kernels = build(model, shapes=proposed_shapes(model) or None, progress=False).kernels
    except TrtlabError:
        return "TensorRT refuses it"
    return f"{len(kernels)} kernel{'s' if len(kernels) != 1 else ''}"


def _fixed(shape: Sequence[int | str]) -> tuple[int, ...]:
    """Symbols such as "S", a sequence length, become 128."""
    return tuple(size if isinstance(size, int) else 128 for size in shape)


def _mib(size: int | None) -> str:
    return "not reported" if size is None else f"{size / 2**20:.0f} MiB"
