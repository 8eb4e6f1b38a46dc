"""Golden files: what is made is compared with what was read and found good."""

from __future__ import annotations

import os
from pathlib import Path


def check(text: str, file: Path) -> None:
    """With REWRITE_GOLDEN set the file is written first: read the difference."""
    if os.environ.get("REWRITE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()
