"""What TensorRT itself says to a profile, right or wrong: its own API with nothing in between, in a process of its own.

`python -m trtlab.profiles.answers` reads cases from standard input and answers each from a fork of its own, since a
failed build can spoil the next one, and a bad profile can end the process.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtlab.diagnose import plain
from trtlab.errors import BuildError

if TYPE_CHECKING:
    import onnx

_SECONDS = 120
OUTCOMES = ("raises", "returns -1", "no engine", "a line in the log", "not a word")  # the last two with an engine


@dataclass(frozen=True)
class Answer:
    """What a call raised, what add_optimization_profile returned, whether there is an engine, and what the log said."""

    raised: str
    returned: tuple[int, ...]
    built: bool
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def silent(self) -> bool:
        """True when there is an engine, and neither an exception nor a -1 nor a warning about the profile."""
        return self.outcome == OUTCOMES[4]

    @property
    def refused(self) -> bool:
        """True when a script that looks at exceptions, at -1 and at None has no engine."""
        return bool(self.raised) or -1 in self.returned or not self.built

    @property
    def outcome(self) -> str:
        """One of OUTCOMES."""
        if self.raised:
            return OUTCOMES[0]
        if -1 in self.returned:
            return OUTCOMES[1]
        if not self.built:
            return OUTCOMES[2]
        return OUTCOMES[3] if self.warnings else OUTCOMES[4]

    def __str__(self) -> str:
        if self.raised:
            return f"set_shape raises {self.raised}"
        if -1 in self.returned:
            after = "; the build goes on without this profile" if self.built else ""
            return f"add_optimization_profile returns -1: {self._error}{after}"
        if not self.built:
            return f"the build returns None: {self._error}"
        return f"builds; a warning: {plain(self.warnings[0])}" if self.warnings else "builds, says nothing"

    @property
    def _error(self) -> str:
        return plain(self.errors[0]) if self.errors else "no reason given"


def answers(cases: Sequence[tuple[onnx.ModelProto, Any]]) -> list[Answer]:
    """TensorRT's answer to each (model, shapes), for SM89; `shapes` goes to set_shape unchecked, whatever it is.

    Inputs that TensorRT takes for shape tensors get their values. Raises BuildError when TensorRT cannot be asked.
    """
    jobs = [[base64.b64encode(model.SerializeToString()).decode(), shapes] for model, shapes in cases]
    done = subprocess.run(
        [sys.executable, "-m", "trtlab.profiles.answers"], input=json.dumps(jobs), capture_output=True, text=True,
        timeout=_SECONDS, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    if len(lines) != len(jobs):
        raise BuildError("TensorRT cannot be asked here.", fix="see 'python -m trtlab doctor'.", log=done.stderr)
    found = []
    for line in lines:
        told = json.loads(line)
        lists = (tuple(told[name]) for name in ("returned", "errors", "warnings"))
        returned, errors, warnings = lists
        found.append(Answer(told["raised"], returned, told["built"], errors, warnings))
    return found


def _answer(model: bytes, shapes: Any, trt: Any) -> dict[str, Any]:
    """Build as chapter 06 does, and keep what each call says."""
    errors: list[str] = []
    warnings: list[str] = []

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and "catchCudaError" not in message:
                errors.append(message)
            elif severity == trt.ILogger.WARNING and message.startswith("Profile k"):
                warnings.append(message)

    builder = trt.Builder(Logger())
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, Logger())
    if not parser.parse(model):
        errors[:0] = [parser.get_error(0).desc()]
        return {"raised": "", "returned": [], "built": False, "errors": errors, "warnings": warnings}
    ports = [network.get_input(index) for index in range(network.num_inputs)]
    values = {port.name for port in ports if port.is_shape_tensor}
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    raised, returned = "", []
    for given in [] if shapes is None else [shapes] if isinstance(shapes, dict) else shapes:
        profile = builder.create_optimization_profile()
        for name, sizes in given.items():
            try:
                (profile.set_shape_input if name in values else profile.set_shape)(name, *_tuples(sizes))
            except (TypeError, RuntimeError) as error:
                raised = raised or f"{type(error).__name__}: {str(error).splitlines()[0].split(' The following')[0]}"
        returned.append(config.add_optimization_profile(profile))
    plan = builder.build_serialized_network(network, config)
    return {
        "raised": raised, "returned": returned, "built": plan is not None, "errors": errors, "warnings": warnings,
    }  # fmt: skip


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def main() -> int:
    """Answer every case of standard input with a line of JSON."""
    import tensorrt_rtx as trt

    out = os.dup(1)
    os.dup2(2, 1)  # what C++ code prints
    for model, shapes in json.load(sys.stdin):
        child = os.fork()
        if child == 0:
            os.write(out, (json.dumps(_answer(base64.b64decode(model), shapes, trt)) + "\n").encode())
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            died: dict[str, Any] = {"raised": "", "returned": [], "built": False, "warnings": []}
            os.write(out, (json.dumps({**died, "errors": ["the process died"]}) + "\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
