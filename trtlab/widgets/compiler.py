"""What a network compiles to, for a GPU and a batch of your choice (chapter 00)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trtlab.errors import TrtlabError

if TYPE_CHECKING:
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


def _fixed(shape: Sequence[int | str]) -> tuple[int, ...]:
    """Symbols such as "S", a sequence length, become 128."""
    return tuple(size if isinstance(size, int) else 128 for size in shape)


def _mib(size: int | None) -> str:
    return "not reported" if size is None else f"{size / 2**20:.0f} MiB"
