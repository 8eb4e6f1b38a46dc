"""What README.md and docs/ name is there: files, tests, links and their places, commands of `imctl`
with their options."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from imctl.main import COMMANDS, load

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TOPS = ("tests", "services", "imctl", "imcore", "tools", "fuzz", "benchmarks", "regions", "charts",
        "deploy", "docs")  # fmt: skip
# Some pages name modules as seen from services/.
INNER = ("adminapi", "control", "engines", "gateway", "im", "ipconf", "media", "metrics", "mirror",
         "node", "policy", "retention", "route", "sdk", "sim", "split", "state")  # fmt: skip
# What looks like a path and is a pattern, or the default of a field.
PATTERNS = {"imctl/REGION/IDC", "regions/DIGEST.yaml", "fuzz/corpus/TARGET/found-*"}


def quoted(page: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(page.read_text().splitlines(), 1):
        for text in re.findall(r"`([^`]+)`", line):
            yield number, text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_tests_are_there(page: Path) -> None:
    missing = []
    for number, text in quoted(page):
        found = re.fullmatch(rf"((?:{'|'.join(TOPS + INNER)})/[\w./*-]+)(?:::(\w+))?", text)
        if found is None or text in PATTERNS:
            continue
        path, test = found.groups()
        if not (files := files_of(path)) or (test and test not in names_of(files[0])):
            missing.append(f"{page.name}:{number}: {text}")
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_named_without_a_folder_are_there(page: Path) -> None:
    named = [(n, name) for n, text in quoted(page) for name in re.findall(r"^(\w+\.py)$", text)]
    assert [f"{page.name}:{n}: {name}" for n, name in named if name not in modules()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http:", "https:")):
            continue
        path, _, place = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (place and place not in places_of(target)):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_options_that_are_said(page: Path) -> None:
    wrong = []
    for line in commands_of(page):
        words = shlex.split(line, comments=True)[1:]
        if not words or not re.fullmatch(r"[a-z][a-z-]+", words[0]):
            continue
        if words[0] not in COMMANDS:
            wrong.append(line)
            continue
        known = options_of(load(words[0]))
        given = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
        if given - known:
            wrong.append(f"{line}: {sorted(given - known)}")
    assert wrong == []


# ------------------------------------------------------------------------------------ looking


def files_of(path: str) -> list[Path]:
    for base in (ROOT, ROOT / "services"):
        at = base / path
        found = list(at.parent.glob(at.name)) if "*" in path else [at, at.with_suffix(".py")]
        if found := [each for each in found if each.exists()]:
            return found
    return []


@cache
def names_of(file: Path) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, kinds)}


@cache
def modules() -> set[str]:
    return {path.name for top in TOPS for path in (ROOT / top).rglob("*.py")}


@cache
def places_of(page: Path) -> set[str]:
    """As GitHub names headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", head.lower()).replace(" ", "-") for head in heads}


def commands_of(page: Path) -> Iterator[str]:
    """In code blocks a line each, several with && between; in the text as `imctl ...`."""
    for line in page.read_text().splitlines():
        if line.startswith("    "):
            for part in re.split(r"&&|\|", line.strip().partition("  #")[0]):
                if part.strip().startswith("imctl "):
                    yield part.strip()
    for _, text in quoted(page):
        if text.startswith("imctl ") and "\\|" not in text and "..." not in text:
            yield text


def options_of(command: Any) -> set[str]:
    found = {"--help", "--debug", "--as"}
    for each in [command, *getattr(command, "commands", {}).values()]:
        for option in each.params:
            found |= {*option.opts, *option.secondary_opts}
        for below in getattr(each, "commands", {}).values():
            for option in below.params:
                found |= {*option.opts, *option.secondary_opts}
    return found
