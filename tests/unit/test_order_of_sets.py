"""Nothing walks over a set of names where order shows: it is another one in each process, for text
is hashed with a salt, and a seed of the simulation would be another run in another process."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path for folder in ("imcore", "services") for path in (ROOT / folder).rglob("*.py")
    if "/engines/" not in str(path) and not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
)  # fmt: skip


def is_set(node: ast.expr) -> bool:
    """As far as its text says."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub | ast.BitAnd | ast.BitOr):
        return is_set(node.left) or is_set(node.right)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in ("set", "frozenset")
    return isinstance(node, ast.Set | ast.SetComp)


def walked(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            yield node.iter


def of_keys(node: ast.expr) -> bool:
    """``a.keys() - b`` and the like: a set."""
    keys = [each for each in ast.walk(node) if isinstance(each, ast.Attribute)]
    return isinstance(node, ast.BinOp) and any(each.attr == "keys" for each in keys)


def found(source: str) -> list[int]:
    return [node.lineno for node in walked(ast.parse(source)) if is_set(node) or of_keys(node)]


def test_the_look_finds_what_it_is_to_find() -> None:
    assert found("for a in x.keys() - y.keys(): pass")
    assert found("for a in set(x): pass")
    assert found("[a for a in {b for b in x}]")
    assert not found("for a in sorted(x.keys() - y.keys()): pass")
    assert not found("for a in x: pass")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_loop_walks_over_a_set(path: Path) -> None:
    assert found(path.read_text()) == []
