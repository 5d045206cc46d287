"""What trtlab would say if profiles meant nothing, to prove that chapter 06 notices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import chapter06
from spoiled_engines import everywhere

from trtlab import building, profiles, trt
from trtlab.engine import Engine
from trtlab.errors import BuildError


def every_profile_refused() -> None:
    """TensorRT takes no profile."""
    trt.IBuilderConfig.add_optimization_profile = lambda self, profile: -1


def profiles_ignored() -> None:
    """Every engine is built for opt of the first profile alone."""
    build = building.build

    def spoiled(model: Any, gpu: Any = None, shapes: Any = None, **options: Any) -> Engine:
        first = profiles.read_shapes(shapes)[:1]
        return build(model, gpu, {name: sizes[1] for one in first for name, sizes in one.items()} or None, **options)

    everywhere(build, spoiled)


def nothing_refused() -> None:
    """TensorRT builds whatever it is given and says nothing; NMS and NonZero included."""
    build = building.build

    def spoiled(model: Any, *args: Any, **options: Any) -> Engine:
        try:
            return build(model, *args, **options)
        except BuildError:
            return Engine(())

    everywhere(build, spoiled)
    everywhere(chapter06.try_profiles, lambda cases: [chapter06.ProfileResponse("", (0,), True, (), ()) for _ in cases])


def nothing_found() -> None:
    """profiles.check finds nothing wrong with anything."""
    everywhere(profiles.check, lambda model, shapes=None: profiles.Findings((), shapes))


def cuts_at_random() -> None:
    """profiles.suggest gives the one wide profile, however many are asked for."""
    suggest = profiles.suggest

    def spoiled(model: Any, observed: Any, **options: Any) -> Any:
        found = suggest(model, observed, **{**options, "count": 1, "multiple": 1})
        same = tuple(replace(option, padding=found.chosen.padding) for option in found.options)
        return replace(found, options=same)

    everywhere(suggest, spoiled)


def no_shape_tensors() -> None:
    """TensorRT takes no input for a shape tensor."""
    trt.ITensor.is_shape_tensor = property(lambda self: False)
