"""`python -m services.sim`: which seeds it begins at, what it says of them in the end."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import pytest

from imcore.sometimes import EXPECTED
from services.sim.__main__ import clean_range, first_seed, main, shortened
from services.sim.run import Outcome


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=n", "-c", "user.email=e@example.com", *words],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_the_commit_chooses_seeds_that_its_neighbours_do_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _git(tmp_path, "init", "--quiet")
    chosen = []
    for said in ("one", "two"):
        _git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", said)
        chosen.append(first_seed("commit"))
        assert chosen[-1] == int(_git(tmp_path, "rev-parse", "HEAD")[:7], 16) * 10_000
        assert first_seed("commit") == chosen[-1]
    assert abs(chosen[0] - chosen[1]) >= 10_000


def test_without_a_checkout_it_is_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("services.sim.__main__.time.time", lambda: 12.7)
    assert first_seed("commit") == 120_000


def test_a_number_is_itself() -> None:
    assert first_seed("17") == 17
    with pytest.raises(ValueError):
        first_seed("seventeen")


def test_a_shortened_trace_keeps_faults_and_what_went_wrong() -> None:
    trace = [
        "1.0 history Ack 1", "1.1 fault fra crash", "1.2 fra.1 WARNING im.node slow",
        "1.3 fra.1 INFO im.audit ERROR no", "1.4 operator failback fra: done", "1.5 fra.1 INFO x y",
    ]  # fmt: skip
    assert shortened(trace) == [trace[1], trace[2], trace[4]]


def outcome(seed: int, counted: Iterable[str] = (), *violated: str) -> Outcome:
    return Outcome(seed, list(violated), sometimes=Counter(counted))


def run(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: Sequence[str],
    of: Callable[[int], Outcome] = outcome,
    until: int | None = None,
) -> int:
    """Seeds come to what ``of`` says, the newest of two first, and at ``until`` somebody presses
    Ctrl-C."""

    def outcomes(run: object, seeds: Iterable[int], jobs: int) -> Iterator[Outcome]:
        for pair in zip_longest(*[iter(seeds)] * 2):
            for seed in reversed([seed for seed in pair if seed is not None]):
                if seed == until:
                    raise KeyboardInterrupt
                yield of(seed)

    monkeypatch.setattr("services.sim.__main__.outcomes", outcomes)
    return main([*options, "--out", str(tmp_path)])


def test_each_counter_that_stays_at_zero_fails_the_fixed_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each seed meets all but some."""
    for name in EXPECTED:
        others = [each for each in EXPECTED if each != name]
        by_seed = {1: others[::2], 2: others[1::2]}

        def of(seed: int, counted: dict[int, list[str]] = by_seed) -> Outcome:
            return outcome(seed, counted[seed])

        assert run(monkeypatch, tmp_path, ["--seeds", "2", "--counters"], of) == 1
        said = capsys.readouterr().out.splitlines()
        assert f"never happened: {name}" in said
        assert run(monkeypatch, tmp_path, ["--seeds", "2"], of) == 0  # it is asked for
        assert "never happened" not in capsys.readouterr().out
        by_seed[1] = [*by_seed[1], name]
        assert run(monkeypatch, tmp_path, ["--seeds", "2", "--counters"], of) == 0


def test_a_broken_seed_fails_whatever_the_counters_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def of(seed: int) -> Outcome:
        return outcome(seed, EXPECTED, *(["missing: a message"] if seed == 3 else []))

    assert run(monkeypatch, tmp_path, ["--seeds", "5", "--counters"], of) == 1
    said = capsys.readouterr().out.splitlines()
    assert "broken: seeds 3" in said
    assert said[-1] == "clean: seeds 1 to 2; go on: make sim FROM=3 SEEDS=3"


def test_many_seeds_are_gone_on_with_where_they_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, ["--seeds", "2000", "--from", "7"], until=101) == 130
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "clean: seeds 7 to 100; go on: make sim FROM=101 SEEDS=1906"
    assert run(monkeypatch, tmp_path, ["--seeds", "1906", "--from", "101"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "clean: seeds 101 to 2006"


@pytest.mark.parametrize(
    ("clean", "wanted", "said"),
    [
        ([1, 2, 3], 3, "clean: seeds 1 to 3"),
        ([1, 3], 4, "clean: seeds 1 to 1; go on: make sim FROM=2 SEEDS=3"),
        ([2, 3], 3, "clean: none; go on: make sim FROM=1 SEEDS=3"),
        ([1, 2], None, "clean: seeds 1 to 2; go on: make sim FROM=3"),
    ],
)
def test_the_clean_range_has_no_gap(clean: list[int], wanted: int | None, said: str) -> None:
    assert clean_range(1, clean, wanted) == said


def test_minutes_and_seeds_end_a_run_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, ["--seeds", "4", "--minutes", "60"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "clean: seeds 1 to 4"
    times = iter([0.0, 0.0, 1.0, 2.0, 61.0, 61.0])
    monkeypatch.setattr("services.sim.__main__.time.monotonic", lambda: next(times))
    assert run(monkeypatch, tmp_path, ["--minutes", "1"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "clean: seeds 1 to 2; go on: make sim FROM=3"
