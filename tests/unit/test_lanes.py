"""How workers share the tests (tests/lanes.py), on small test files of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lanes import ENGINES, NICE, PATIENT, WAITING, WHOLE, part_of, unit_of

TESTS = Path(__file__).parents[1]
# The whole conftest.py takes each process seconds to import; the lanes are all that is tried here.
CONFTEST = """
from tests import lanes

pytest_collection_modifyitems = lanes.pytest_collection_modifyitems
pytest_configure = lanes.pytest_configure
pytest_runtest_setup = lanes.pytest_runtest_setup
pytest_xdist_make_scheduler = lanes.pytest_xdist_make_scheduler
"""
NOTING = """
import os
import pytest

@pytest.mark.parametrize("which", range(5))
def test_it(which, request):
    with open("ran", "a") as file:
        worker = os.environ.get("PYTEST_XDIST_WORKER", "-")
        print(request.node.nodeid, worker, os.nice(0), file=file)
"""
PORTS = """
import os
from pathlib import Path
from imctl.target.places import free_ports

def test_it():
    ports = " ".join(map(str, free_ports(50)))
    Path("ports-" + os.environ["PYTEST_XDIST_WORKER"]).write_text(ports)
"""
BAD = """
def test_bad():
    print("said before")
    assert 1 == 2
"""
ENGINE = """
import pytest

@pytest.fixture
def kafka_program():
    return "kafka"

@pytest.fixture
def kafka_process(kafka_program):
    return kafka_program

@pytest.fixture
def kafka_of_its_own(kafka_program):
    return kafka_program

def test_it({}):
    pass
"""
HELD = """
import time
import pytest

@pytest.fixture(scope="session")
def engine():
    yield
    open("stopped", "w").close()

def test_it(engine):
    open("started", "w").close()
    time.sleep(60)
"""


def write(root: Path, **tests: str) -> None:
    (root / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    for name, text in tests.items():
        folder = root / "tests" / name
        folder.mkdir(parents=True)
        (folder / f"test_{name}.py").write_text(text)
    shutil.copy(TESTS / "lanes.py", root / "tests")
    (root / "tests" / "conftest.py").write_text(CONFTEST)


def start(root: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest", "-p", "xdist", *options, "tests"]
    variables = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    variables["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # most of a start is their import
    return subprocess.Popen(
        command, cwd=root, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip


def run(root: Path, *options: str) -> tuple[int, str]:
    process = start(root, *options)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def ran(root: Path) -> list[tuple[str, str, int]]:
    lines = map(str.split, (root / "ran").read_text().splitlines())
    return [(nodeid, worker, int(nice)) for nodeid, worker, nice in lines]


def test_what_is_named_is_there() -> None:
    for place in (place for places in WHOLE.values() for place in places):
        there = TESTS.parent / place
        assert there.is_dir() if place.endswith("/") else there.is_file(), place
    for file in PATIENT:
        assert (TESTS.parent / file).is_file() and unit_of(f"{file}::test_it") == file
    assert unit_of("tests/e2e/test_moves.py::test_it[tests/unit]") == WAITING
    assert unit_of("tests/contract/test_kv_contract.py::test_it") == ENGINES
    assert unit_of("tests/integration/test_media.py::test_it") == "tests/integration/test_media.py"
    assert unit_of("tests/unit/test_fold.py::test_it[a::b]") == "tests/unit/test_fold.py"


def test_one_worker_runs_what_waits_in_order_and_the_others_give_way_where_they_compute(
    tmp_path: Path,
) -> None:
    folders = ("kubernetes", "e2e", "contract", "integration", "unit", "simulation")
    write(tmp_path, **dict.fromkeys(folders, NOTING))
    status, said = run(tmp_path, "-n", "3")
    assert status == 0, said
    every = ran(tmp_path)
    own = [[nodeid for nodeid, by, _ in every if by == f"gw{number}"] for number in range(3)]
    first, *others = [nodeids[:5] for nodeids in own]
    whole = [
        [f"tests/{name}/test_{name}.py::test_it[{n}]" for n in range(5)]
        for name in ("e2e", "contract", "integration")
    ]
    assert first == whole[0] and sorted(others) == whole[1:]
    usual = os.nice(0)
    for nodeid, worker, nice in every:
        gives_way = worker != "gw0" and nodeid.startswith(("tests/unit/", "tests/simulation/"))
        assert nice == min(usual + (NICE if gives_way else 0), 19)
    assert "30 passed" in said.splitlines()[-1]
    for folder in folders:
        assert f"%] tests/{folder}/test_{folder}.py " in said
    assert "[100%]" in said


def test_workers_have_ports_of_their_own(tmp_path: Path) -> None:
    ports = range(20_000, 32_000)
    parts = [part_of(ports, number, 3) for number in range(3)]
    assert sorted(port for part in parts for port in part) == list(ports)
    assert part_of(ports, 4, 3) == parts[1]
    write(tmp_path, unit=PORTS, e2e=PORTS)
    status, said = run(tmp_path, "-n", "2")
    assert status == 0, said
    first, second = (
        set(map(int, (tmp_path / f"ports-{worker}").read_text().split()))
        for worker in ("gw0", "gw1")
    )
    assert len(first) == len(second) == 50 and max(first) < min(second)


def test_a_failure_is_shown_at_once_and_whole(tmp_path: Path) -> None:
    write(tmp_path, unit=NOTING, e2e=BAD)
    status, said = run(tmp_path, "-n", "2")
    assert status == 1
    live, _, end = said.partition("FAILURES")
    assert "FAILED tests/e2e/test_e2e.py::test_bad (call)" in live
    assert "assert 1 == 2" in end and "said before" in end
    assert "1 failed, 5 passed" in said.splitlines()[-1]


def test_verbose_shows_which_test_runs(tmp_path: Path) -> None:
    write(tmp_path, unit=NOTING, e2e=NOTING)
    _, said = run(tmp_path, "-n", "2", "-v")
    assert "tests/e2e/test_e2e.py::test_it[0] \n" in said
    assert "PASSED tests/e2e/test_e2e.py::test_it[0]" in said


@pytest.mark.parametrize("options", [(), ("-n", "0")])
def test_one_process_runs_all_as_ever(tmp_path: Path, options: tuple[str, ...]) -> None:
    write(tmp_path, unit=NOTING, kubernetes=NOTING, contract=NOTING, e2e="")
    name = Path(PATIENT[0]).name
    (tmp_path / "tests" / "e2e" / name).write_text(NOTING)
    status, said = run(tmp_path, *options)
    assert status == 0 and "20 passed" in said.splitlines()[-1]
    folders = [nodeid.split("/")[1] for nodeid, _, _ in ran(tmp_path)]
    assert folders == ["contract"] * 5 + ["kubernetes"] * 5 + ["unit"] * 5 + ["e2e"] * 5
    assert {worker for _, worker, _ in ran(tmp_path)} == {"-"}


@pytest.mark.parametrize(
    ("folder", "fixture", "refused"),
    [
        ("unit", "kafka_of_its_own", "kafka_program"),
        ("e2e", "kafka_of_its_own", ""),
        ("contract", "kafka_process", ""),
        ("e2e", "kafka_process", "kafka_process"),  # the session would start it twice
    ],
)
def test_an_engine_is_refused_where_another_may_stand_beside(
    tmp_path: Path, folder: str, fixture: str, refused: str
) -> None:
    write(tmp_path, **{folder: ENGINE.format(fixture)})
    status, said = run(tmp_path)
    assert status == (4 if refused else 0), said
    test = f"tests/{folder}/test_{folder}.py::test_it"
    assert not refused or f"{test} waits for {refused}: its place is in tests/" in said


def test_ctrl_c_ends_it_and_engines_are_stopped(tmp_path: Path) -> None:
    write(tmp_path, unit=NOTING, e2e=HELD)
    process = start(tmp_path, "-n", "2")
    until = time.monotonic() + 120
    while not (tmp_path / "started").exists():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert (tmp_path / "stopped").exists()
