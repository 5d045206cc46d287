"""Run the notebooks top to bottom and keep their outputs, the same bytes each time: notebooks/execute.py [file …]."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from queue import Empty
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"
# What a notebook says about its kernel, without the version of the Python that ran it.
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}


class Client(NotebookClient):
    """A NotebookClient that asks each second whether the kernel has answered.

    With widgets, runs were seen to wait until their time was up for a reply of a kernel long idle, and then to find it
    there. The likely reason: what nbclient sends the widgets on the same socket takes the wake-up of the waiting poll.
    """

    async def async_start_new_kernel_client(self) -> Any:
        """As nbclient's; replies are waited for in steps of a second."""
        client = await super().async_start_new_kernel_client()
        wait = client.shell_channel.get_msg

        async def get_msg(timeout: float | None = None) -> Any:
            end = time.monotonic() + (float("inf") if timeout is None else timeout)
            while True:
                try:
                    return await wait(timeout=max(0, min(1, end - time.monotonic())))
                except Empty:
                    if time.monotonic() >= end:
                        raise

        client.shell_channel.get_msg = get_msg
        return client


def execute(path: Path) -> float:
    """Run one notebook in its own folder and replace the file when every cell has run; returns the seconds it took."""
    begin = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    client = Client(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    tidy(notebook)
    draft = path.with_suffix(".ipynb.part")
    nbformat.write(notebook, draft)
    draft.replace(path)
    return time.perf_counter() - begin


def tidy(notebook: Any) -> None:
    """Take out what differs between two runs or two machines: widget ids, Python's version, timing."""
    notebook.metadata.clear()
    notebook.metadata.update(METADATA)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            # A widget lives only as long as its kernel; GitHub draws the static figure beside it.
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]


def main(names: list[str]) -> int:
    """Execute the notebooks named, or all of them."""
    os.environ.setdefault("TRTLAB_PROGRESS", "0")
    for path in [Path(name).resolve() for name in names] or sorted(HERE.glob("[0-9]*.ipynb")):
        print(f"{path.name}: {execute(path):.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
