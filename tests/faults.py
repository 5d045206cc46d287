"""Do the tests protect the reader? Plant one fault after the other in a copy of this checkout, and see each caught.

By hand: python tests/faults.py            every fault must make one of its tests fail
         python tests/faults.py --control  the same tests without a fault: all must pass
Options: --only NAME … for some of them, --list to see them. The checkout itself is never changed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 300  # for the tests of one fault
NOTEBOOKS = ["-p", "nbval.plugin", "--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={SECONDS}"]
# A test that fails so has not seen the fault; the fault broke something else.
DISHONEST = re.compile(r"ImportError|ModuleNotFoundError|SyntaxError|IndentationError|NameError|collected 0 items")


@dataclass(frozen=True)
class Fault:
    """A mistake to plant: `old`, which stands once in `where`, becomes `new`, and one of `tests` must fail.

    `where` is a file, or CODE, all code that readers run, so that code may move inside it. A test is the name of a
    function, with its parameter in brackets where one is enough, or the path of a notebook's solved copy.
    """

    name: str
    where: str
    old: str
    new: str
    tests: tuple[str, ...]


CODE = "."  # trtlab and the modules beside the notebooks
# fmt: off
FAULTS = (
    # What became of each node, and what is a kernel
    Fault("fate-owner", CODE, "== 0), key=rank)", "== 0), key=lambda layer: -rank(layer))",
          ("test_node_that_several_layers_name_belongs_to_the_one_that_computes_it",)),
    Fault("fate-reason", CODE, '"unreachable": not used & written', '"constant": not used & written',
          ("test_reason_unreachable",)),
    Fault("fate-no-op", CODE, '"Add": (0, (0, 1))', '"Add": (1, (0, 1))',
          ("test_node_that_changes_its_input_is_no_no_op",)),
    Fault("bookkeeping-counted", CODE, '"deallocate", "shape_call"', '"deallocate"',
          ("test_log_of_several_profiles_counts_kernels_once",)),
    Fault("inspector-8", CODE, r'r" \+ | \|\| "', r'r" \|\| "',
          ("test_inspector_of_every_version_gives_the_same_engine[8]",)),
    Fault("inspector-11", CODE, 'if "I/O Tensors" in content', 'if "Ports" in content',
          ("test_inspector_of_every_version_gives_the_same_engine[11]",)),
    # A build, its limits, its files and its cache
    Fault("build-memory-limit", CODE, "elif resident > memory:", "elif resident < 0:",
          ("test_memory_limit_on_the_real_tensorrt",)),
    Fault("build-time-limit", CODE, "if passed > seconds:", "if passed < 0:",
          ("test_time_limit_ends_the_build",)),
    Fault("build-crash", CODE, "raise self._crash()", "return self.transcript",
          ("test_build_keeps_the_kernel_alive_when_tensorrt_ends_its_process[import abort-SIGABRT]",)),
    Fault("cache-target", CODE, "json.dumps([FORMAT, order]", 'json.dumps([FORMAT, {**order, "target": ""}]',
          ("test_anything_else_is_compiled_anew[target]",)),
    Fault("cache-external-data", CODE, "source.digest, *map(digest_of, source.external))", "source.digest)",
          ("test_touching_the_external_weights_compiles_anew",)),
    Fault("cache-cut-plan", CODE, "plan.stat().st_size == content", "content",
          ("test_damaged_entry_is_built_again_without_a_word[cut plan]",)),
    Fault("file-overwritten", CODE, "if not overwrite and os.path.lexists(path):", "if False:",
          ("test_save_never_overwrites",)),
    Fault("file-half-left", CODE, "os.unlink(temporary)", "os.stat(temporary)",
          ("test_save_into_a_folder_that_is_not_there",)),
    # Precision and numbers
    Fault("lost-weight-pair", CODE, "for i in (0, 1) if", "for i in (0,) if",
          ("test_an_old_opset_is_raised",)),
    Fault("percentile", CODE, "inside[-1] * percent / 100", "inside[-1] * (percent - 1) / 100",
          ("test_percentile_agrees_with_onnx_runtime_to_one_of_its_bins",)),
    Fault("entropy", CODE, "clipped[0] += counts[:start].sum()", "clipped[0] += 0",
          ("test_entropy_agrees_with_onnx_runtime",)),
    Fault("channel-axis", CODE, 'if node.op_type == "Conv":\n        return 0',
          'if node.op_type == "Conv":\n        return 1',
          ("test_a_channel_with_small_weights_keeps_its_precision_only_with_a_scale_of_its_own",)),
    Fault("symmetric-range", CODE, "LARGEST = 127", "LARGEST = 128",
          ("test_a_constant_input_has_a_scale_that_reaches_it[minmax]",)),
    Fault("fp16-overflow", CODE, "else (data_max, folder)", "else (np.inf, folder)",
          ("test_nodes_whose_values_leave_the_range_stay_in_fp32_and_say_so",)),
    Fault("assert-precision", CODE, "if found < at_least", "if found < 0",
          ("test_an_fp32_engine_is_not_taken_for_fp16",)),
    Fault("sqnr", CODE, "10 * math.log10", "20 * math.log10",
          ("test_sqnr_is_the_textbook_formula_and_survives_overflow",)),
    Fault("accuracy-interval", CODE, "z, n, p = 1.959964", "z, n, p = 1.644854",
          ("test_accuracy_comes_with_wilsons_interval",)),
    # Profiles and memory
    Fault("profile-order", CODE, "if left > right:", "if left > right + 9:",
          ("test_every_mistake_is_found_and_placed[min larger than opt]",)),
    Fault("profile-elements", CODE, "LIMIT = 2**31 - 1", "LIMIT = 2**33",
          ("test_every_mistake_is_found_and_placed[more than 2^31 elements]",)),
    Fault("suggest-padding", CODE, "(before[ends] - before[low])", "(ends - low)",
          ("test_the_cuts_are_the_best_there_are",)),
    Fault("liveness-early", CODE, "and not one.users <= ended", "and not one.users & ended",
          ("test_a_tensor_lives_from_its_first_writer_to_its_last_reader",)),
    Fault("fits-reserve", CODE, "proto, given, capacity - reserve)", "proto, given, capacity)",
          ("test_the_largest_batch_fits_and_one_more_does_not",)),
    Fault("curve-beyond-ends", CODE, "<= self.sizes[-1]:", "<= 2 * self.sizes[-1]:",
          ("test_a_curve_never_answers_beyond_its_ends[9]",)),
    # Recordings and the other data
    Fault("trtexec-time", CODE, '_ms(run["computeMs"])', '_ms(run["latencyMs"])',
          ("test_ones_own_recording_is_read",)),
    Fault("recording-row", "data/recordings/layers.csv", "resnet18-a100-fp16,Conv_3 + Relu_4,CaskConvolution,0.053248",
          "resnet18-a100-fp16,Conv_3 + Relu_4,CaskConvolution,0.035248",
          ("test_a_convolution_stands_beside_its_quantised_twin",)),
    Fault("gpu-row", "data/gpus.csv", "RTX-3090,8.6", "RTX-3090,8.9",
          ("test_target_of_anything_that_names_one[RTX 3090-SM86]",)),
    Fault("gpu-suggestion", CODE, "key=lambda one: -likeness[one])", "key=lambda one: likeness[one])",
          ("test_a_name_without_figures_says_why_and_what_is_closest",)),
    # What is said about a machine, a message, an export
    Fault("doctor-gap", CODE, '        if package.state == "broken":', '        if package.state == "odd":',
          ("test_a_broken_package_is_an_issue_with_a_fix",)),
    Fault("diagnose-fix", "data/messages.toml", "sequence) smaller", "sequence) larger", ("test_known_messages",)),
    Fault("checklist-unused", CODE, ' if reason != "unreachable"', "",
          ("test_an_input_that_only_dead_nodes_read_is_unused",)),
    # Chapters: exercises that accept a wrong answer, a wrong solution, a wrong number, a machine's path
    Fault("exercise-01.3", CODE, ", torch.tensor([[1.0, -1.0], [3.0, -3.0]])", ",",
          ("test_01_3_says_what_is_wrong[zero too]",)),
    Fault("exercise-04.1", CODE, "truth = int(np.sqrt(largest))", "truth = int(np.sqrt(largest)) + 1",
          ("test_the_first_exercise_says_in_which_direction_to_look",)),
    Fault("exercise-07.1", CODE, "abs(answer - truth) <= 0.02 * truth", "abs(answer - truth) <= 0.2 * truth",
          ("test_chapter_07_says_what_is_wrong_with_an_answer[07.1-19-give a decimal]",)),
    Fault("solution-03.2", "notebooks/03_builder_runtime_context.ipynb", "ComputeCapability.SM120, 1)",
          "ComputeCapability.SM89, 1)",
          ("build/notebooks/03_builder_runtime_context.ipynb",)),
    Fault("chapter-number", "notebooks/00_start_here.ipynb", "== 29", "== 30",
          ("build/notebooks/00_start_here.ipynb",)),
    Fault("chapter-noise", "notebooks/02_graph_optimization.ipynb", "you guessed 121",
          "/home/me/course: you guessed 121",
          ("test_the_outputs_hold_no_noise_and_nothing_of_one_machine[02_graph_optimization]",)),
    # Widgets, pictures, the page, the command line, the project
    Fault("widget-choice", CODE, "multiple=8, count=buckets)", "multiple=8, count=1)",
          ("tests/test_chapter06.py::test_the_widget_draws_what_was_chosen",)),
    Fault("picture-copies", CODE, "axes.barh(rows + 0.2, copies", "axes.barh(rows + 0.2, work",
          ("test_the_difference_of_two_recordings_adds_up",)),
    Fault("page-network", CODE, "<style>\n:root", '<link rel="stylesheet" href="https://example.org/a.css">\n<style>\n:root',
          ("test_the_report_needs_nothing_but_itself",)),
    Fault("page-warning", CODE, "if guessed:", "if False:", ("test_missing_shapes_are_proposed_and_told",)),
    Fault("cli-status", CODE, "return 1\n    except KeyboardInterrupt", "return 0\n    except KeyboardInterrupt",
          ("test_same_input_twice_is_refused",)),
    Fault("readme-table", "README.md", "| 45 | running the engine you built |", "| 46 | running the engine you built |",
          ("test_the_table_of_chapters_is_the_course",)),
    Fault("environment-pin", "environment.yml", "      - -e .[lab]", "      - onnx==1.22.0\n      - -e .[lab]",
          ("test_environment_installs_this_project_with_an_extra_it_has",)),
)
# fmt: on


def main() -> int:
    """The exit status is 1 when a fault is missed, 2 when one cannot be planted any more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[fault.name for fault in FAULTS], default=[])
    parser.add_argument("--list", action="store_true", help="name the faults, what they change and the tests")
    parser.add_argument("--control", action="store_true", help="run the tests without a fault")
    options = parser.parse_args()
    faults = [fault for fault in FAULTS if not options.only or fault.name in options.only]
    if options.list:
        for fault in faults:
            print(f"{fault.name:<24} {fault.where}: {fault.old!r} -> {fault.new!r}  [{', '.join(fault.tests)}]")
        return 0
    with tempfile.TemporaryDirectory(prefix="trtlab-faults-") as folder:
        return run(Path(folder), faults, options.control)


def run(folder: Path, faults: Sequence[Fault], control: bool) -> int:
    """Plant each fault in a copy of the checkout, or only run the tests of all of them."""
    root = folder / "copy"
    copy_checkout(root)
    problems = [problem for fault in faults for problem in gone(root, fault)]
    if problems:
        print("\n".join(problems))
        return 2
    begin = time.perf_counter()
    if control:
        tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
        status, said = run_tests(root, tests)
        print(said.strip() if status else f"{len(tests)} tests pass without a fault ({seconds(begin)})")
        return int(status != 0)
    missed = 0
    for fault in faults:
        start = time.perf_counter()
        with planted(root, fault):
            verdict = judge(*run_tests(root, fault.tests, "-x"))
        missed += not verdict.startswith("caught")
        print(f"{fault.name:<24} {seconds(start):>6}  {verdict}", flush=True)
    print(f"{len(faults) - missed} of {len(faults)} faults caught in {seconds(begin)}")
    return int(missed > 0)


def seconds(begin: float) -> str:
    """The time since `begin`."""
    return f"{time.perf_counter() - begin:.1f} s"


def judge(status: int, said: str) -> str:
    """What the end of pytest says about a fault: caught by which test, or why not."""
    failed = re.findall(r"^(?:FAILED|ERROR) (\S.*)$", said, re.MULTILINE)
    if status == 0:
        return "MISSED: the tests pass"
    if status != 1 or not failed:
        ended = f"no end within {SECONDS} s" if status == -signal.SIGKILL else f"pytest ends with {status}"
        return f"MISSED: {ended}\n{said[-2000:]}"
    if DISHONEST.search(failed[0]):
        return f"MISSED: the test fails for another reason: {failed[0]}"
    return f"caught by {failed[0][:180]}"


def copy_checkout(root: Path) -> None:
    """Copy the files that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)


def places(root: Path, fault: Fault) -> list[tuple[Path, str, str]]:
    """Each (file, old, new) where a fault may be planted; once for every time that `old` stands there."""
    where = root / fault.where
    folders = [where / "trtlab", where / "notebooks", where / "data"]
    inside = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".jinja")]
    files = [where] if where.is_file() else sorted(inside)
    found = []
    for path in files:
        old, new = fault.old, fault.new
        if path.suffix == ".ipynb":  # the text of its JSON
            old, new = (json.dumps(text, ensure_ascii=False)[1:-1] for text in (old, new))
        found += [(path, old, new)] * path.read_text(encoding="utf-8").count(old)
    return found


def gone(root: Path, fault: Fault) -> Iterator[str]:
    """Why a fault can no longer be planted, or its tests no longer be run; nothing when both can."""
    found = places(root, fault)
    if len(found) != 1:
        yield f"fault {fault.name} no longer applies: {fault.old!r} stands {len(found)} times in {fault.where}"
    for path, old, new in found:
        if path.suffix == ".py":
            try:
                compile(path.read_text(encoding="utf-8").replace(old, new), path, "exec")
            except SyntaxError as error:
                yield f"fault {fault.name} no longer applies: it makes no Python of {path.name}, line {error.lineno}"
    for test in fault.tests:
        if len(ids(root, test)) != 1:
            yield f"fault {fault.name} no longer applies: there are {len(ids(root, test))} tests '{test}'"


def ids(root: Path, test: str) -> list[str]:
    """What pytest calls a test: the path of a notebook, or file::function."""
    if "/" in test.partition("[")[0]:
        file = root / test.removeprefix("build/").partition("::")[0]  # the copy is made when pytest starts
        return [test] if file.is_file() else []
    function = f"\ndef {test.partition('[')[0]}("
    files = sorted((root / "tests").glob("test_*.py"))
    return [f"tests/{path.name}::{test}" for path in files if function in path.read_text(encoding="utf-8")]


@contextmanager
def planted(root: Path, fault: Fault) -> Iterator[None]:
    """The copy with the fault in it; afterwards the file is as it was, its time included."""
    ((path, old, new),) = places(root, fault)
    text, status = path.read_text(encoding="utf-8"), path.stat()
    path.write_text(text.replace(old, new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # what Python compiled of it is right again


def run_tests(root: Path, tests: Sequence[str], *options: str) -> tuple[int, str]:
    """Run tests in the copy with a cache of its own; pytest's exit status and what it printed."""
    cache = root.parent / "cache"
    shutil.rmtree(cache / "engines", ignore_errors=True)  # the exported models stay
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=short", "-rfE", "-p", "no:cacheprovider"]
    command += [*options, *(NOTEBOOKS if any(test.endswith(".ipynb") for test in tests) else [])]
    command += [name for test in tests for name in ids(root, test)]
    environment = {**os.environ, "PYTHONPATH": str(root), "TRTLAB_CACHE": str(cache), "COLUMNS": "400"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # more than half the time of a short test
    process = subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=SECONDS * (1 + len(tests) // 10))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, said


if __name__ == "__main__":
    sys.exit(main())
