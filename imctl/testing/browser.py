"""How a real browser lays a page out."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

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
