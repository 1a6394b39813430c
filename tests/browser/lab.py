"""JupyterLab on loopback and a real browser: open a notebook, Run All, look at what came out."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from entityclip.config import REPOSITORY
from tests.fixtures.ports import free_port

NOTEBOOKS = REPOSITORY / "notebooks"
_LAB_STARTS = 120  # seconds
_WIDTH, _TALLEST = 1280, 16_000  # pixels of a screenshot

# no question about news at the first start; every cell in the page, also those out of sight
_PAGE_CONFIG = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
_SETTINGS = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}

_STATE = """() => {
  const cells = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')]
    .filter(cell => cell.querySelector('.cm-content')?.textContent.trim());
  return cells.map(cell => cell.querySelector('.jp-InputPrompt').textContent.trim());
}"""

# what a reader should not meet in an output: (what it is, the text)
_FAULTS = r"""() => {
  const found = [];
  for (const node of document.querySelectorAll('.jp-Notebook .jp-OutputArea-output')) {
    const kind = node.dataset.mimeType || '', text = node.textContent.trim();
    if (kind.endsWith('jupyter.stderr') || kind.endsWith('jupyter.error'))
      found.push([/Traceback \(most recent/.test(text) ? 'error' : 'stderr', text.slice(-600)]);
    if (/^Loading widget|Error displaying widget|Failed to (load|create|render) /.test(text))
      found.push(['widget', text.slice(0, 300)]);
    if (/^<[\w.]+ (object )?at 0x[0-9a-f]+>$/.test(text)) found.push(['raw repr', text]);
  }
  for (const image of document.querySelectorAll('.jp-Notebook .jp-OutputArea-output img'))
    if (image.complete && !image.naturalWidth) found.push(['picture', 'could not be shown']);
  return found;
}"""


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: where it answers and which folder it shows."""

    url: str
    token: str
    folder: Path

    def address(self, notebook: str) -> str:
        """The page of a notebook, with a workspace of its own."""
        return f"{self.url}/lab/tree/notebooks/{notebook}.ipynb?token={self.token}&reset"


def find_chromium() -> str | None:
    """Debian's chromium, or a browser of its kind that ``ENTITYCLIP_CHROMIUM`` names."""
    named = os.environ.get("ENTITYCLIP_CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def running_lab(folder: Path, *, theme: str = "light") -> Iterator[Lab]:
    """JupyterLab on copies of the notebooks without outputs: what is seen was made by this run."""
    (folder / "notebooks").mkdir(parents=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.update(outputs=[], execution_count=None)
        nbformat.write(notebook, folder / "notebooks" / path.name)
    token, port = secrets.token_hex(16), free_port()
    lab = Lab(f"http://127.0.0.1:{port}", token, folder)
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
        *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"),
    ]
    with _served(lab, command, _environment(folder, theme)):
        yield lab


@contextmanager
def lab_by_make(folder: Path) -> Iterator[Lab]:
    """What ``make lab`` serves, without a browser of its own; settings and logs in `folder`."""
    token, port = secrets.token_hex(16), free_port()
    lab = Lab(f"http://127.0.0.1:{port}", token, folder)
    options = [
        *("--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"),
        *(f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"),
    ]
    # as installed as the tests are: nothing is to be installed anew below them
    command = [
        *("make", "lab", "--old-file=.venv/.installed", f"LAB={' '.join(options)}"),
        f"BIN={Path(sys.executable).parent}",
    ]
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data"}
    own = {name: str(folder / place) for name, place in places.items()}
    with _served(lab, command, {**os.environ, **own}):
        yield lab


@contextmanager
def _served(lab: Lab, command: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Start `command` in the repository, wait until it answers, and end it and its children."""
    with (lab.folder / "lab.log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, cwd=REPOSITORY, start_new_session=True
        )
        try:
            _wait_until_up(lab, server)
            yield
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def run_all(page: Any, lab: Lab, notebook: str, timeout: float) -> list[str]:
    """Open a notebook, click Run → Run All Cells, wait for every prompt; what is wrong with it.

    Raises TimeoutError where cells still run after `timeout` seconds, naming the first.
    """
    page.goto(lab.address(notebook), wait_until="domcontentloaded", timeout=120_000)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    _wait_for_kernel(page)
    page.locator(".lm-MenuBar-item", has_text="Run").first.click()
    page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()
    deadline = time.monotonic() + timeout
    while True:
        prompts = page.evaluate(_STATE)
        running = [n for n, text in enumerate(prompts, 1) if not text.strip("[]:").isdigit()]
        faults = page.evaluate(_FAULTS)
        # a failed cell leaves the prompts after it empty
        if not running or any(kind == "error" for kind, _ in faults):
            break
        if time.monotonic() > deadline:
            raise TimeoutError(f"{notebook}: code cell {running[0]} still ran after {timeout:g} s")
        page.wait_for_timeout(500)
    _wait_for_widgets(page)
    found = [f"{kind}: {text}" for kind, text in page.evaluate(_FAULTS)]
    if not prompts:
        found.append("no code cell was found on the page")
    return found


def _wait_for_widgets(page: Any) -> None:
    """Until the last widgets and pictures are laid out; what never comes is a fault."""
    for _ in range(20):
        page.wait_for_timeout(1000)
        if not any(text.startswith("Loading widget") for _, text in page.evaluate(_FAULTS)):
            return


def _wait_for_kernel(page: Any) -> None:
    """Until the notebook has its kernel; a slow machine's JupyterLab asks which one to start."""
    named = page.locator(".jp-KernelName", has_text="Python 3")
    accept = page.locator(".jp-Dialog .jp-mod-accept")
    named.or_(accept).first.wait_for(timeout=180_000)
    if accept.count():
        accept.first.click()
    named.first.wait_for(timeout=180_000)
    # "idle" stands there before there is a kernel, too
    page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").wait_for(timeout=180_000)


def screenshot(page: Any, path: Path) -> Path:
    """The whole notebook as one PNG, as tall as it needs to be."""
    height = page.evaluate(
        "() => Math.max(...[...document.querySelectorAll('.jp-NotebookPanel-notebook, "
        ".jp-WindowedPanel-outer')].map(node => node.scrollHeight))"
    )
    page.set_viewport_size({"width": _WIDTH, "height": min(height + 160, _TALLEST)})
    page.evaluate(
        "() => document.querySelectorAll('.jp-NotebookPanel-notebook, .jp-WindowedPanel-outer')"
        ".forEach(node => { node.scrollTop = 0; })"
    )
    page.wait_for_timeout(800)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path)
    page.set_viewport_size({"width": _WIDTH, "height": 900})
    return path


def _environment(folder: Path, theme: str) -> dict[str, str]:
    """A configuration of its own, so that nobody's settings are read or changed."""
    config = folder / "config" / "labconfig"
    config.mkdir(parents=True)
    (config / "page_config.json").write_text(json.dumps(_PAGE_CONFIG))
    looks = {"theme": f"JupyterLab {theme.title()}"}
    settings = {**_SETTINGS, "@jupyterlab/apputils-extension:themes": looks}
    (config / "default_setting_overrides.json").write_text(json.dumps(settings))
    own = {"JUPYTER_CONFIG_DIR": folder / "config", "JUPYTER_DATA_DIR": folder / "data",
           "JUPYTER_RUNTIME_DIR": folder / "runtime", "IPYTHONDIR": folder / "ipython",
           "JUPYTERLAB_SETTINGS_DIR": folder / "settings",
           "JUPYTERLAB_WORKSPACES_DIR": folder / "workspaces"}  # fmt: skip
    environment = {**os.environ, **{name: str(path) for name, path in own.items()}}
    environment["ENTITYCLIP_PROFILE"] = "smoke"
    environment.pop("TQDM_DISABLE", None)  # progress bars are part of what is looked at
    return environment


def _wait_until_up(lab: Lab, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + _LAB_STARTS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{lab.url}/api/status?token={lab.token}", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    log = (lab.folder / "lab.log").read_text(errors="replace")[-2000:]
    raise RuntimeError(f"JupyterLab did not start within {_LAB_STARTS} s:\n{log}")
