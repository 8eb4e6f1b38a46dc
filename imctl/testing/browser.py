"""How a real browser lays a page out, and what a page does in it."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

TIMEOUT_S = 60.0
# Without the network flags it looks for its maker's hosts at every start.
_FLAGS = (
    "--headless",
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
)
# What Chrome says of a script that met a page between two documents.
_AWAY = ("Inspected target navigated or closed", "Cannot find default execution context")
# A frame of the wanted width: a window of a browser cannot be made narrower than 500 pixels.
_HARNESS = """<!DOCTYPE html><iframe src="{page}" style="border:0;width:{width}px;height:800px"
onload="const d = this.contentDocument, box = e => e.getBoundingClientRect();
document.body.textContent = JSON.stringify({{
  width: d.documentElement.scrollWidth,
  charts: [...d.querySelectorAll('svg')].map(e => [box(e).width, box(e).height]),
  text: d.body.innerText}})"></iframe>"""


class Layout(NamedTuple):
    """``width``: what the page takes, pixels; more than the frame's: it scrolls sideways.
    ``charts``: width and height of each. ``text``: what can be read."""

    width: int
    charts: list[tuple[float, float]]
    text: str


def lay_out(chromium: str, page: Path, width: int, profile: Path) -> Layout:
    """``profile``: a folder for the browser's own files. Raises CalledProcessError,
    TimeoutExpired."""
    harness = profile.with_suffix(".html")
    harness.write_text(_HARNESS.format(page=page.absolute().as_uri(), width=width))
    done = subprocess.run(
        [
            chromium,
            *_FLAGS,
            f"--user-data-dir={profile}",
            "--dump-dom",
            harness.absolute().as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    found = re.search(r"<body>(.*)</body>", done.stdout, re.DOTALL)
    assert found is not None and found[1].startswith("{"), done.stdout[:500]
    document = json.loads(html.unescape(found[1]))
    charts = [(float(wide), float(high)) for wide, high in document["charts"]]
    return Layout(document["width"], charts, document["text"])


class Navigated(RuntimeError):
    """The page was on its way to another document, so nobody ran the script, or to its end."""


class Driven:
    """A browser with pages, driven over the Chrome DevTools protocol. ``async with``."""

    def __init__(self, chromium: str, profile: Path, *flags: str) -> None:
        self._command = [chromium, *_FLAGS, *flags, f"--user-data-dir={profile}"]
        self._profile = profile
        self._last = 0

    async def __aenter__(self) -> Driven:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            "--remote-debugging-port=0",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        where = self._profile / "DevToolsActivePort"
        async with asyncio.timeout(TIMEOUT_S):
            while not where.exists() or len(where.read_text().splitlines()) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        port, path = where.read_text().splitlines()
        self._http = aiohttp.ClientSession()
        self._tools = await self._http.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._tools.close()
        await self._http.close()
        self._process.kill()
        await self._process.wait()

    async def open(self, url: str) -> str:
        """A page's session. Storage is of the profile: all pages share it."""
        made = await self._ask("Target.createTarget", {"url": url})
        attach = {"targetId": made["targetId"], "flatten": True}
        attached = await self._ask("Target.attachToTarget", attach)
        session: str = attached["sessionId"]
        return session

    async def run(self, page: str, script: str) -> Any:
        """The value of an expression in the page. Raises RuntimeError with what it threw."""
        ask = {"expression": script, "returnByValue": True, "awaitPromise": True}
        answer = await self._ask("Runtime.evaluate", ask, page)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:1000])
        return answer["result"].get("value")

    async def reload(self, page: str) -> None:
        """Asked of the browser: a script that reloads its own page may get no answer."""
        await self._ask("Page.reload", {}, page)

    async def until(self, page: str, script: str, seconds: float = 20.0) -> None:
        """Until the expression is true. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while True:
                with contextlib.suppress(Navigated):
                    if await self.run(page, script):
                        return
                await asyncio.sleep(0.05)

    async def _ask(self, method: str, parameters: Any, session: str = "") -> Any:
        self._last += 1
        asked = {"id": self._last, "method": method, "params": parameters}
        await self._tools.send_json(asked | ({"sessionId": session} if session else {}))
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                told = await self._tools.receive_json()
                if told.get("id") == self._last:
                    break
        if "error" in told:
            away = told["error"].get("message") in _AWAY
            raise (Navigated if away else RuntimeError)(f"{method}: {told['error']}")
        return told["result"]
