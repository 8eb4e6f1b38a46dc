"""The bugs of tools/planted_bugs.py still fit the sources, and the tool that plants them can fail.
The runs themselves are `make planted`."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tools.mutations import COPIED, ROOT, mutated
from tools.planted import PAGE, check, read, write_table
from tools.planted_bugs import PLANTED, Planted

SIM = """
import sys
first = int(sys.argv[sys.argv.index("--from") + 1])
if {broken}:
    print(f"seed {{first + 1}}: BROKEN; 9 operations")
    print("  violated: missing: a message")
    print(f"seed {{first}}: ok; 9 operations")
    sys.exit(1)
print(f"seed {{first}}: ok; 9 operations")
sys.exit({status})
"""


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.name)
def test_each_bug_applies_and_compiles(bug: Planted) -> None:
    compile(mutated(bug, ROOT), bug.file, "exec")


def test_there_are_eleven_each_with_a_number_of_seeds() -> None:
    assert len({bug.name for bug in PLANTED}) == len(PLANTED) == 11
    assert all(bug.seeds > 0 for bug in PLANTED)


def tree(folder: Path, broken: str = "False", status: int = 0) -> Path:
    """A project whose simulation says what it is told to."""
    for name in COPIED:
        (folder / name).mkdir() if "." not in name else (folder / name).write_text("")
    (folder / "services" / "sim").mkdir()
    for package in ("services", "services/sim"):
        (folder / package / "__init__.py").write_text("")
    source = SIM.format(broken=broken, status=status)
    (folder / "services" / "sim" / "__main__.py").write_text(source)
    return folder


def bug(old: str, new: str) -> Planted:
    return Planted("b", 5, "how", "services/sim/__main__.py", old, new)


def run(root: Path, planted: Planted) -> tuple[int, str]:
    said = io.StringIO()
    rows = check([planted], root, Console(file=said, width=300), 1)
    return len(rows), said.getvalue()


def test_a_bug_is_found_by_the_first_broken_seed(tmp_path: Path) -> None:
    found, said = run(tree(tmp_path), bug("if False:", "if True:"))
    assert found == 1
    assert "b: 2 of 5 seeds" in said
    assert "missing: a message" in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("9 operations", "9 operations", "is there 3 times"),
        ("first)", "first)", "is there 0 times"),
        ("sys.exit(0)", "sys.exit(0) ", "NOT FOUND in 5 seeds"),
        ("sys.exit(0)", "sys.exit(3)", "exit status 3"),
        ("if False:", "if:", "exit status 1"),
    ],
    ids=["applies twice", "does not apply", "not found", "ends otherwise", "no code"],
)
def test_only_a_broken_promise_counts(tmp_path: Path, old: str, new: str, said: str) -> None:
    found, output = run(tree(tmp_path), bug(old, new))
    assert found == 0
    assert said in output


def test_seeds_that_are_broken_without_any_bug_prove_nothing(tmp_path: Path) -> None:
    found, said = run(
        tree(tmp_path, "True"), bug('9 operations")\n    print("  v', '9")\n    print("  v')
    )
    assert found == 0
    assert "not clean without any bug" in said


def test_the_lowest_broken_seed_counts_in_whatever_order_they_end() -> None:
    said = "seed 4: BROKEN; x\n  violated: a\n  violated: b\nseed 2: BROKEN; x\n  violated: c\n"
    assert read(said) == (2, "c")
    said = "seed 1: BROKEN; x\n  violated: the run broke off\n  violated: missing: b\n"
    assert read(said) == (1, "missing: b")
    assert read("seed 1: ok; x\nseed 2: ok; x\n") == (2, "")


def test_the_table_takes_the_place_of_the_former_one(tmp_path: Path) -> None:
    page = tmp_path / PAGE
    page.parent.mkdir()
    page.write_text(
        "before\n<!-- planted: made by `make planted` -->\nold\n<!-- planted: end -->\nafter\n"
    )
    from tools.planted import Found

    write_table(tmp_path, [(PLANTED[0], Found(2, "missing: a | b", 61.4))])
    text = page.read_text()
    assert text.startswith("before\n<!-- planted") and text.endswith(
        "<!-- planted: end -->\nafter\n"
    )
    assert "old" not in text
    assert f"| {PLANTED[0].name} |" in text and "missing: a / b | 2 |" in text
