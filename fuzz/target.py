"""What a fuzz target is: a check that any bytes must pass, and where to begin."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
NAMES = (
    "frames", "requests", "gateway", "ipconf", "tokens", "region", "segments", "mirror",
    "history", "documents", "audit",
)  # fmt: skip


class TooSlow(AssertionError):
    """One input took more processor time than its target allows."""


@dataclass(frozen=True, slots=True)
class Target:
    """``check`` returns for every input that is dealt with as documented, and raises for any
    other. ``seeds`` are good inputs to start from, ``words`` what a mutation may put in.
    ``mutate(data, rng_seed, bytes_max)`` knows the inputs' form; None: bytes are enough."""

    name: str
    check: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    words: Sequence[bytes] = ()
    bytes_max: int = 4096
    cpu_s: float = 1.0  # of one input; instrumented code is some times slower than plain
    mutate: Callable[[bytes, int, int], bytes] | None = None

    def run(self, data: bytes) -> None:
        """Raises what ``check`` does, and TooSlow."""
        begun = time.process_time()
        self.check(data)
        spent = time.process_time() - begun
        if spent > self.cpu_s:
            raise TooSlow(f"{len(data)} bytes took {spent:.2f} s, at most {self.cpu_s} s may pass")

    def found(self) -> list[Path]:
        """The committed inputs: each was a finding once, or reaches what no seed does."""
        return sorted((CORPUS / self.name).glob("*"))


def load(name: str) -> Target:
    """Imports what it tests, which the engine must have been told of by then."""
    target = importlib.import_module(f"fuzz.targets.{name}").TARGET
    assert isinstance(target, Target)
    assert target.name == name
    return target
