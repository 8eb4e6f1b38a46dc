"""Write docs/admin-api.openapi.json of the admin API's code. With --check: fail when it differs."""

from __future__ import annotations

import sys
from pathlib import Path

from services.adminapi.openapi import text

PAGE = Path(__file__).resolve().parents[1] / "docs" / "admin-api.openapi.json"


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(text())
    elif PAGE.read_text() != text():
        raise SystemExit("run `make docs`: stale docs/admin-api.openapi.json")
