"""Each known defect is brought back in a copy of the sources, and its named test must fail there.

The same copy passes all named tests first: a test that is red anyway would prove nothing. Only a
failed test counts as red; a mutated file that cannot even be imported does not. Exit status 1 when
a mutation does not apply, or leaves its test green.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from tools.known_defects import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("imcore", "imctl", "services", "tests", "tools", "regions", "pyproject.toml")
TEST_MAX_S = 120.0
FAILED = 1  # pytest's exit status when tests ran and some failed


class DoesNotApply(Exception):
    pass


class Change(Protocol):
    """Put ``new`` in the place of ``old``, which stands in ``file`` exactly once."""

    @property
    def file(self) -> str: ...

    @property
    def old(self) -> str: ...

    @property
    def new(self) -> str: ...


def mutated(mutation: Change, root: Path) -> str:
    """The text of the mutated file. Raises DoesNotApply."""
    try:
        text = (root / mutation.file).read_text()
    except OSError as error:
        raise DoesNotApply(f"{mutation.file}: {error.strerror}") from error
    if (count := text.count(mutation.old)) != 1:
        raise DoesNotApply(f"{mutation.file}: {mutation.old!r} is there {count} times, not once")
    return text.replace(mutation.old, mutation.new)


@contextmanager
def applied(mutation: Change, root: Path, number: int) -> Iterator[None]:
    """``root`` is as it was afterwards. ``number``: another one for each change of a copy. Raises
    DoesNotApply."""
    text = mutated(mutation, root)
    path = root / mutation.file
    kept, at_ns = path.read_bytes(), path.stat().st_mtime_ns
    try:
        path.write_text(text)
        # Python takes compiled code by the seconds of this time and the size of the file.
        changed_ns = at_ns + (number + 1) * 10_000_000_000
        os.utime(path, ns=(changed_ns, changed_ns))
        yield
    finally:
        path.write_bytes(kept)
        os.utime(path, ns=(at_ns, at_ns))


def copy_of(root: Path, target: Path) -> None:
    for name in COPIED:
        source = root / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target / name, ignore=ignored)
        else:
            shutil.copy2(source, target / name)


def run_module(
    root: Path, module: Sequence[str], max_s: float, bytecode: bool = False
) -> tuple[int, str]:
    """Exit status and output of ``python -m`` with a copy's packages: they come before the
    checkout's, since -m puts the working folder first. Raises subprocess.TimeoutExpired."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *([] if bytecode else ["-B"]), "-m", *module],
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=max_s,
        check=False,
    )
    return done.returncode, done.stdout


def run_tests(root: Path, tests: Sequence[str], bytecode: bool) -> tuple[int, str]:
    """pytest's exit status and output."""
    command = ["pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        return run_module(root, command, TEST_MAX_S, bytecode)
    except subprocess.TimeoutExpired:
        return FAILED, f"not done within {TEST_MAX_S:g} s"


def outcome(mutation: Mutation, root: Path, number: int) -> tuple[bool, str]:
    """Whether the test fails under the mutation, and in a word what happened. ``root`` is as it
    was afterwards."""
    try:
        with applied(mutation, root, number):
            status, said = run_tests(root, [mutation.test], bytecode=False)
    except DoesNotApply as error:
        return False, f"does not apply: {error}"
    if status == FAILED:
        return True, "red"
    return False, "GREEN" if status == 0 else f"no verdict (pytest: {status})\n{said[-800:]}"


def check(mutations: Sequence[Mutation], root: Path, screen: Console) -> int:
    table = Table("defect", "mutation", "test", "outcome", "s", box=None, pad_edge=False)
    good = 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        copy = Path(folder)
        copy_of(root, copy)
        status, said = run_tests(copy, sorted({m.test for m in mutations}), bytecode=True)
        if status != 0:
            screen.print(said, markup=False, highlight=False)
            screen.print("the tests fail without any mutation: nothing can be learned from them")
            return 1
        for number, mutation in enumerate(mutations):
            began = time.monotonic()
            red, word = outcome(mutation, copy, number)
            good += red
            seconds = f"{time.monotonic() - began:.1f}"
            test = mutation.test.partition("::test_")[2].replace("_", " ")
            table.add_row(mutation.defect, mutation.what, test, word, seconds)
    screen.print(table, markup=False, highlight=False)
    screen.print(f"{good} of {len(mutations)} mutations were found", highlight=False)
    return 0 if good == len(mutations) else 1


def main() -> int:
    terminal = sys.stdout.isatty()
    return check(MUTATIONS, ROOT, Console(width=None if terminal else 200))


if __name__ == "__main__":
    sys.exit(main())
