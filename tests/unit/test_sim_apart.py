"""Seeds side by side, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path

from imcore import countries
from services.sim.apart import outcomes


def _tables(seed: int) -> int:
    return countries._table.cache_info().currsize


def test_every_seed_is_run_once() -> None:
    assert sorted(outcomes(partial(pow, 2), range(5), 2)) == [1, 2, 4, 8, 16]


def test_a_seed_is_taken_only_when_a_core_is_free_for_it() -> None:
    taken = count()
    found = outcomes(partial(pow, 2), taken, 2)
    assert next(found) in (1, 2)
    found.close()
    assert next(taken) <= 3


def test_what_every_seed_would_load_is_there_when_it_begins() -> None:
    assert list(outcomes(_tables, [1], 1)) == [1]


SLOW = """
import os, time
from pathlib import Path
if str(os.getpid()) != os.environ["PARENT"]:
    Path("importing").touch()
    time.sleep(3)
def run(seed):
    return seed
"""
CALLS = """
import os
os.environ["PARENT"] = str(os.getpid())
import slow
from services.sim.apart import outcomes
try:
    print([*outcomes(slow.run, [1], 1)])
except KeyboardInterrupt:
    pass
"""


def test_ctrl_c_while_its_processes_still_import_leaves_the_words_to_the_parent(
    tmp_path: Path,
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[2])])
    with subprocess.Popen(
        [sys.executable, "-B", "-c", CALLS], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": paths}, start_new_session=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 30
        while not (tmp_path / "importing").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert said == ""
