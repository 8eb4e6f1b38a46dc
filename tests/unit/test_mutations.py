"""The mutations of tools/known_defects.py still fit the sources, and the tool that runs them can
fail. The runs themselves are `make mutations`."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tools.known_defects import DEFECTS, MUTATIONS, Mutation
from tools.mutations import COPIED, ROOT, check, mutated


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_each_mutation_fits_and_names_a_test_that_exists(mutation: Mutation) -> None:
    compile(mutated(mutation, ROOT), mutation.file, "exec")
    file, _, name = mutation.test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text()


def test_each_known_defect_has_a_mutation() -> None:
    assert {mutation.defect for mutation in MUTATIONS} == set(DEFECTS)
    assert len(DEFECTS) == 19


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one line of code and one test of it."""
    # Most of a start is the import of plug-ins, of which these tests need none.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name in COPIED:
        (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_text("")
    (tmp_path / "imcore" / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "tests" / "test_sums.py").write_text(
        "import importlib.util\n"
        "spec = importlib.util.spec_from_file_location('sums', 'imcore/sums.py')\n"
        "sums = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(sums)\n"
        "def test_add():\n    assert sums.add(2, 3) == 5\n"
        "def test_nothing():\n    assert sums\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "test", "status", "word"),
    [
        ("a + b", "a - b", "test_add", 0, "1 of 1"),
        ("a + b", "a - b", "test_nothing", 1, "GREEN"),
        ("a * b", "a - b", "test_add", 1, "is there 0 times"),
        ("a", "b", "test_add", 1, "is there 3 times"),
        ("a + b", "a +", "test_add", 1, "no verdict"),
    ],
    ids=["red", "green", "does not apply", "applies twice", "no code"],
)
def test_only_a_failed_test_counts(
    root: Path, old: str, new: str, test: str, status: int, word: str
) -> None:
    mutation = Mutation("d", "w", "imcore/sums.py", old, new, f"tests/test_sums.py::{test}")
    said = io.StringIO()
    assert check([mutation], root, Console(file=said, width=300)) == status
    assert word in said.getvalue()


def test_a_test_that_fails_anyway_proves_nothing(root: Path) -> None:
    (root / "tests" / "test_sums.py").write_text("def test_add():\n    assert False\n")
    mutation = Mutation("d", "w", "imcore/sums.py", "+", "-", "tests/test_sums.py::test_add")
    said = io.StringIO()
    assert check([mutation], root, Console(file=said, width=300)) == 1
    assert "fail without any mutation" in said.getvalue()
