"""Each test that docs/security.md names exists: a claim does not outlive what attacks it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    line for line in (ROOT / "docs" / "security.md").read_text().splitlines() if "`tests/" in line
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.strip("| ")[:40])
def test_a_claim_is_attacked_by_tests_that_exist(row: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
    assert len(named) == row.count("`tests/") > 0
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert name in {node.name for node in tree.body if isinstance(node, kinds)}, name


def test_the_table_is_found() -> None:
    assert len(ROWS) >= 12
