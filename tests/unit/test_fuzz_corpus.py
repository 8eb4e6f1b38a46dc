"""Every input that fuzzing once found, and every seed, keeps its target's promise.
A finding of ``make fuzz`` is a file in fuzz/corpus, and fails here until it is mended."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz.target import NAMES, load

INPUTS = [(name, path) for name in NAMES for path in sorted((load(name)).found())]


@pytest.mark.parametrize("name", NAMES)
def test_good_inputs_are_taken(name: str) -> None:
    target = load(name)
    for seed in target.seeds():
        assert len(seed) <= target.bytes_max
        target.run(seed)


@pytest.mark.parametrize(("name", "path"), INPUTS, ids=lambda value: getattr(value, "name", value))
def test_what_was_found_once(name: str, path: Path) -> None:
    load(name).run(path.read_bytes())
