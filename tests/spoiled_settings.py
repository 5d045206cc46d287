"""Answers that TensorRT should never give: chapter 03, which checks its claims, must notice them.

Each function changes trtlab in the process that calls it, and nothing else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import chapter03
from spoiled_engines import everywhere

from trtlab import building, engine


def settings_do_nothing() -> None:
    """Every setting makes the default engine, and nobody complains."""
    build = chapter03.try_setting

    def spoiled(model: Any, setting: str = "", *args: Any, **options: Any) -> chapter03.Trial:
        return replace(build(model, "", *args, **options), setting=setting, said="")

    _replace_trials(spoiled)


def everything_is_refused() -> None:
    """No setting but the default builds."""
    build = chapter03.try_setting

    def spoiled(model: Any, setting: str = "", *args: Any, **options: Any) -> chapter03.Trial:
        trial = build(model, setting, *args, **options)
        return trial if not setting else replace(trial, engine=None, plan_bytes=None, said="no")

    _replace_trials(spoiled)


def every_engine_is_the_first() -> None:
    """Whatever was to be built, the first engine comes back."""
    build, found = building.build, []

    def spoiled(*args: Any, **options: Any) -> Any:
        found.append(build(*args, **options))
        return found[0]

    everywhere(build, spoiled)


def every_plan_is_the_same() -> None:
    """All plans have the same bytes."""
    engine.Engine.plan_bytes = lambda self: b"plan" * 1000  # type: ignore[method-assign]


def every_file_is_fine() -> None:
    """The runtime has nothing against any file."""
    everywhere(chapter03.check_plan, lambda plan, name="": chapter03.PlanCheck(name, len(plan), "needs a GPU", ""))


def every_card_is_supported() -> None:
    """No release ever dropped a GPU."""
    everywhere(chapter03.supports, lambda software, card: True)


def _replace_trials(spoiled: Any) -> None:
    def all_spoiled(model: Any, lines: Any, shapes: Any = None, gpu: Any = None) -> list[chapter03.Trial]:
        return [spoiled(model, line, shapes, gpu) for line in lines]

    everywhere(chapter03.try_settings, all_spoiled)
    everywhere(chapter03.try_setting, spoiled)
