"""Write the list of all metrics into docs/metrics.md. With --check: fail when it differs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from services.metrics.catalog import table

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "metrics.md"
_TABLE = re.compile(r"(<!-- metrics -->\n).*?(<!-- end -->)", re.DOTALL)


def page(text: str) -> str:
    """The page with the list as the code has it."""
    return _TABLE.sub(lambda m: m[1] + table() + m[2], text)


if __name__ == "__main__":
    old = PAGE.read_text()
    if "--check" in sys.argv:
        if page(old) != old:
            raise SystemExit("run `make docs`: stale docs/metrics.md")
    else:
        PAGE.write_text(page(old))
