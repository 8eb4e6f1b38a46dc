"""Write the lists of all metrics into docs/metrics.md. With --check: fail when it differs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from services.metrics.catalog import METRICS, OPERATOR, table

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "metrics.md"
_TABLE = re.compile(r"(<!-- (metrics|operator) -->\n).*?(<!-- end -->)", re.DOTALL)
_LISTS = {"metrics": METRICS, "operator": OPERATOR}


def page(text: str) -> str:
    """The page with the lists as the code has them."""
    return _TABLE.sub(lambda m: m[1] + table(_LISTS[m[2]]) + m[3], text)


if __name__ == "__main__":
    old = PAGE.read_text()
    if "--check" in sys.argv:
        if page(old) != old:
            raise SystemExit("run `make docs`: stale docs/metrics.md")
    else:
        PAGE.write_text(page(old))
