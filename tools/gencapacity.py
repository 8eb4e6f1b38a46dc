"""Write what `imctl size` prints into docs/capacity.md, and the schema of its JSON beside it.

With --check: fail when either differs. In the page, the code block below a comment that holds a
command, `<!-- imctl size ... -->`, is that command's output at 80 columns.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from imctl.capacity.result import Sizing

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "capacity.md"
SCHEMA = ROOT / "docs" / "size.schema.json"
_BLOCK = re.compile(r"<!-- (imctl size[^>]*?) -->\n```\n.*?```\n", re.DOTALL)


def printed(command: str) -> str:
    """What the command prints on 80 columns, from the root of the checkout."""
    result = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80", "TTY_COMPATIBLE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"{command}: {result.stderr.strip()}")
    return "".join(line.rstrip() + "\n" for line in result.stdout.splitlines())


def page(text: str) -> str:
    """The page with each block as its command prints it now."""
    return _BLOCK.sub(lambda m: f"<!-- {m[1]} -->\n```\n{printed(m[1])}```\n", text)


def schema() -> str:
    return json.dumps(Sizing.model_json_schema(mode="serialization"), indent=2) + "\n"


if __name__ == "__main__":
    old = PAGE.read_text()
    fresh = {PAGE: page(old), SCHEMA: schema()}
    stale = [path for path, text in fresh.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        if stale:
            names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
            raise SystemExit(f"run `make docs`: stale {names}")
    else:
        for path in stale:
            path.write_text(fresh[path])
