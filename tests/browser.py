"""Drive JupyterLab in a headless Chromium as a reader would: a server on loopback with a token, and a page on it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
IDLE = "(ipykernel) | Idle"


def chromium() -> str | None:
    """The path of a Chromium on this machine, or None."""
    return next((path for path in map(shutil.which, PROGRAMS) if path), None)


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: its address, its token, and the file its log goes to."""

    address: str
    token: str
    log: Path

    def url(self, notebook: str) -> str:
        """The address that opens `notebook`, a path below the server's folder, in an empty workspace."""
        return f"{self.address}/lab/workspaces/test/tree/{notebook}?token={self.token}&reset"


@contextlib.contextmanager
def jupyter_lab(folder: Path, home: Path) -> Iterator[Lab]:
    """Serve `folder` with JupyterLab on a free loopback port; what it writes goes to `home`, not to the user's."""
    token, port = secrets.token_hex(16), _free_port()
    (home / "settings").mkdir(parents=True)
    (home / "settings/overrides.json").write_text(json.dumps(_settings()), encoding="utf-8")
    lab = Lab(f"http://127.0.0.1:{port}", token, home / "jupyterlab.log")
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
        f"--LabApp.app_settings_dir={home / 'settings'}",
    ]  # fmt: skip
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    own = {name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    with lab.log.open("wb") as log:
        server = subprocess.Popen(command, env={**os.environ, **own}, cwd=folder, stdout=log, stderr=log)
        try:
            _wait_until_up(lab, server)
            yield lab
        finally:
            server.terminate()  # it ends its kernels itself
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _settings() -> dict[str, Any]:
    """What `make lab` sets, and every cell in the page, not only those in view, so that a test can look at them."""
    settings: dict[str, Any] = json.loads((ROOT / ".jupyter/overrides.json").read_text(encoding="utf-8"))
    return {**settings, "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(lab: Lab, server: subprocess.Popen[bytes], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{lab.address}/api?token={lab.token}", timeout=2).close()
            return
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{lab.log.read_text(errors='replace')[-3000:]}")


@contextlib.contextmanager
def browser_page() -> Iterator[Any]:
    """A page of a headless Chromium, wide enough for a notebook; `chromium()` must have found one."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser.new_page(viewport={"width": 1400, "height": 1000})
        finally:
            browser.close()


class NotebookPage:
    """One notebook open in JupyterLab: run it, move its controls, look at its outputs."""

    def __init__(self, page: Any, lab: Lab, notebook: str) -> None:
        self.page = page
        self.errors: list[str] = []  # of the page's own scripts
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(lab.url(notebook))
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        self.wait_idle()

    def wait_idle(self, seconds: float = 60) -> None:
        """Wait until the status bar says that the kernel is idle."""
        self.page.wait_for_selector(f"#jp-main-statusbar >> text={IDLE}", timeout=seconds * 1000)

    def run_all(self, seconds: float = 300) -> None:
        """Clear what the file holds, run all cells, and wait until no cell is waiting and the kernel is idle."""
        for button in self.page.query_selector_all(".jp-Dialog .jp-mod-accept"):
            button.click()
        self._menu("Edit", "editmenu:clear-all")
        self._menu("Run", "runmenu:run-all")
        self.page.wait_for_function(
            """() => {
                const prompts = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')];
                const all = prompts.map(prompt => prompt.textContent).join('');
                return /\\d/.test(all) && !all.includes('*');
            }""",
            timeout=seconds * 1000,
        )
        self.wait_idle(seconds)

    def _menu(self, menu: str, command: str) -> None:
        self.page.click(f"#jp-MainMenu >> text={menu}")
        self.page.click(f"[data-command='{command}']")

    def error_texts(self) -> list[str]:
        """The tracebacks that cells show."""
        selector = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
        return [element.inner_text() for element in self.page.query_selector_all(selector)]

    def pictures(self) -> list[str]:
        """The pictures inside widgets, in order: the source of each img, the mark-up of each svg."""
        found: list[str] = self.page.evaluate(
            """() => [...document.querySelectorAll('.jupyter-widgets img, .jupyter-widgets svg')].filter(
                node => !node.closest('button') && !(node.parentElement && node.parentElement.closest('svg'))
            ).map(node => node.tagName === 'IMG' ? node.src : node.outerHTML)"""
        )
        return found

    def settled_pictures(self, seconds: float = 60) -> list[str]:
        """The pictures inside widgets once the kernel is idle; there must be some."""
        self.wait_idle(seconds)
        found = self.pictures()
        assert found, "no widget shows a picture"
        return found

    def move_slider(self, key: str = "ArrowRight", number: int = 0) -> None:
        """Press an arrow key on the notebook's slider."""
        handle = self.page.locator(".jp-Notebook .noUi-handle").nth(number)
        handle.scroll_into_view_if_needed()
        handle.focus()
        handle.press(key)

    def choose(self, label: str, option: str) -> None:
        """Choose an option of the dropdown that stands behind `label`."""
        box = self._control("widget-dropdown", label)
        box.locator("select").select_option(label=option)

    def options(self, label: str) -> list[str]:
        """What the dropdown behind `label` offers."""
        found = self._control("widget-dropdown", label).locator("option").all_inner_texts()
        return [option.replace("\N{NO-BREAK SPACE}", " ") for option in found]

    def wait_for_text(self, text: str, seconds: float = 60) -> None:
        """Wait until the outputs of the notebook's cells show `text`."""
        self.page.locator(".jp-Notebook .jp-OutputArea").get_by_text(text).first.wait_for(timeout=1000 * seconds)

    def press(self, label: str, button: str) -> None:
        """Press one of the toggle buttons that stand behind `label`."""
        box = self._control("widget-toggle-buttons", label)
        box.get_by_role("button", name=button, exact=True).click()

    def pressed(self, label: str) -> str:
        """The text of the toggle button behind `label` that is down."""
        down: str = self._control("widget-toggle-buttons", label).locator("button.mod-active").inner_text()
        return down

    def _control(self, kind: str, label: str) -> Any:
        text = self.page.get_by_text(label, exact=True)
        box = self.page.locator(f".jp-Notebook .{kind}").filter(has=text)
        box.scroll_into_view_if_needed()
        return box

    def wait_for_other_pictures(self, before: list[str], seconds: float = 60) -> None:
        """Wait until the widgets' pictures differ from `before` and none is missing."""
        deadline = time.monotonic() + seconds
        while (now := self.pictures()) in ([], before):
            assert time.monotonic() < deadline, f"the picture {now and 'did not change'} within {seconds:.0f} s"
            self.page.wait_for_timeout(50)  # polls for the kernel's answer
