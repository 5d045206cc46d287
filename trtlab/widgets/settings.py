"""What the builder's settings make of a network: targets, streams, verbosity of your choice (chapter 03)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtlab.errors import TrtlabError

if TYPE_CHECKING:
    from ipywidgets import VBox

    from trtlab.onnx_model import Model

TARGETS = {
    "RTX 4090": ("SM89",),
    "RTX 3090, 4090, 5090": ("SM86", "SM89", "SM120"),
    "RTX 4090 and T4": ("SM89", "SM75"),
    "T4": ("SM75",),
}
STREAMS = ("any", "1", "2", "3")
VERBOSITIES = ("DETAILED", "LAYER_NAMES_ONLY", "NONE")


def setting_lines(targets: tuple[str, ...], streams: str = "any", verbosity: str = "DETAILED") -> str:
    """The lines that one writes for it: build targets such as ("SM86", "SM89"), streams in all, verbosity."""
    lines = [f"config.num_compute_capabilities = {len(targets)}"]
    lines += [
        f"config.set_compute_capability(trt.ComputeCapability.{target}, {index})"
        for index, target in enumerate(targets)
    ]
    if streams != "any":
        lines.append(f"config.max_aux_streams = {int(streams) - 1}")
    return "\n".join([*lines, f"config.profiling_verbosity = trt.ProfilingVerbosity.{verbosity}"])


def settings_picture(model: Model, targets: str, streams: str, verbosity: str, shapes: Any = None) -> Any:
    """Build `model` for an RTX 4090 with the defaults and with the choices, and draw both engines."""
    from trtlab import draw
    from trtlab.settings import try_settings

    chosen = setting_lines(TARGETS[targets], streams, verbosity)
    default, mine = try_settings(model, [setting_lines(TARGETS["RTX 4090"]), chosen], shapes, "RTX 4090")
    streams = "" if streams == "any" else f", at most {streams} stream{'s' * (streams != '1')}"
    name = f"{targets}{streams}, {verbosity}"
    title = "TensorRT refuses" if mine.engine is None else "TensorRT refuses the default, and builds this"
    if mine.plan_bytes and default.plan_bytes:
        title = f"The plan weighs {mine.plan_bytes / default.plan_bytes:.1f} times the default one"
    return draw.trials({"the default: RTX 4090, DETAILED": default, name: mine}, title)


def settings_explorer(models: Mapping[str, Model], shapes: Mapping[str, Any]) -> VBox:
    """Controls for network, targets, streams and verbosity; each change runs the real compiler twice."""
    import ipywidgets
    from IPython.display import display

    controls = {
        "network": ipywidgets.Dropdown(options=list(models), description="Network"),
        "targets": ipywidgets.Dropdown(options=list(TARGETS), description="Targets"),
        "streams": ipywidgets.ToggleButtons(options=STREAMS, description="Streams", style={"button_width": "50px"}),
        "verbosity": ipywidgets.Dropdown(options=VERBOSITIES, description="Verbosity"),
    }

    def show(network: str, **choices: str) -> None:
        try:
            display(settings_picture(models[network], **choices, shapes=shapes.get(network)))
        except TrtlabError as error:
            display(error.diagnosis)

    picture = ipywidgets.interactive_output(show, controls)
    first, second = list(controls.values())[:2], list(controls.values())[2:]
    return ipywidgets.VBox([ipywidgets.HBox(first), ipywidgets.HBox(second), picture])
