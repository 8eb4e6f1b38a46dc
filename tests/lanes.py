"""How several workers share the tests: ``pytest -n 3`` (pytest-xdist), as `make test` calls it.

Most tests that take long wait: for processes to start, for a failover, for an engine. So there is
one worker more than `.ci/run` has processors. The first one runs whole deployments, and what has
little time for something, one after the other, in their order: two of them at once would keep each
other from their time limits. Another one runs all tests of engines, so that an engine that a
session shares is started once. Everything else comes file by file, on whichever worker is free:
first what waits, then the cluster as a whole, which may be built meanwhile, then what only
computes. That has no time limits, and gives way (``NICE``). Last come some deployments that have
time enough.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Generator

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import NodeManager, WorkerController

from imctl.target import places

FIRST = "gw0"  # the worker that takes what waits
NICE = 5
STOP_S = 60  # after Ctrl-C: a worker is killed when its engines have not stopped by then
# What one worker runs as a whole, in this order: folders and files.
WAITING, ENGINES, CLUSTER = "waiting", "engines", "cluster"
GIVES_WAY = pytest.StashKey[bool]()


def _integration(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/integration/test_{name}.py" for name in names)


WHOLE = {
    WAITING: (
        "tests/e2e/",
        # Limits of tenths of a second, or a deployment of all engines.
        *_integration(
            "cuts", "linkproxy", "local_all_engines", "overload", "sdk_client", "sdk_limits",
            "split", "trace",
        ),
    ),
    ENGINES: (
        "tests/contract/",
        *_integration(
            "class_archives", "etcd_members", "etcd_registry", "ipconf_apart", "kafka_log",
            "kafka_members", "local_engines", "mm2_mirror", "s3_blobs", "standby",
            "standby_hosts", "tikv_faults",
        ),
    ),
    CLUSTER: ("tests/kubernetes/",),
}  # fmt: skip
# Deployments with time enough for everything. They come last, file by file, the longest first, so
# that the workers end at about the same time.
PATIENT = tuple(
    f"tests/e2e/test_{name}.py"
    for name in (
        "retention", "hostile_disks", "secrets", "up_and_down", "features", "loss_for_good", "demo",
    )
)  # fmt: skip
COMPUTE = ("tests/simulation/", "tests/unit/")
# Who asks for one of these fixtures has to be there.
PROGRAMS = frozenset(
    {
        "cluster_programs", "etcd_program", "every_engine", "kafka_program", "s3_program",
        "tikv_programs",
    }
)  # fmt: skip
# And for one of these, which stand until the session ends, in no other place.
SHARED = frozenset({"kafka_process", "tikv_processes"})


def unit_of(nodeid: str) -> str:
    """What one worker runs as a whole, or the file of this test."""
    file = nodeid.partition("::")[0]
    if file in PATIENT:
        return file
    for unit, where in WHOLE.items():
        if file.startswith(where):
            return unit
    return file


class Lanes(LoadScopeScheduling):  # type: ignore[misc]  # which has no types
    """The first worker begins with the deployments, another with the engines. Whoever is done takes
    the next file."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)

    def schedule(self) -> None:
        self.config.option.loadscopereorder = False  # not the files with most tests first
        super().schedule()

    def _assign_work_unit(self, node: WorkerController) -> None:
        if ENGINES in self.workqueue:
            self.workqueue.move_to_end(ENGINES, last=False)
        if WAITING in self.workqueue:
            self.workqueue.move_to_end(WAITING, last=node.gateway.id != FIRST)
        super()._assign_work_unit(node)


class FileLines:
    """What a run of several workers shows: a line for each file that is done, and for each test
    that fails or is tried again. The dots of two files at once would say nothing."""

    def __init__(self, reporter: pytest.TerminalReporter, lanes: Lanes) -> None:
        self._reporter, self._lanes = reporter, lanes
        self._left: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(self) -> Generator[None, tuple[str, str, str], object]:
        category, _, word = yield
        return category, "", word

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.partition("::")[0]
        self._seconds[file] += report.duration
        if report.failed:
            self._reporter.write_line(f"FAILED {report.nodeid} ({report.when})", red=True)
        elif str(report.outcome) == "rerun":  # pytest-rerunfailures
            self._reporter.write_line(f"AGAIN {report.nodeid} ({report.when})", yellow=True)
        if report.when != "teardown":
            return
        if not self._left:
            self._left.update(nodeid.partition("::")[0] for nodeid in self._lanes.collection or ())
        self._left[file] -= 1
        if not self._left[file]:
            self._reporter.write_line(f"[{self._percent():3d}%] {file} {self._seconds[file]:.1f} s")

    def _percent(self) -> int:
        every = len(self._lanes.collection or ())
        return 100 * (every - self._left.total()) // max(every, 1)


# ------------------------------------------------------------------------- hooks of conftest.py


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes | None:
    """None: the user has asked for another one (``--dist``)."""
    if config.getvalue("dist") != "load":  # what -n alone means
        return None
    NodeManager.EXIT_TIMEOUT = STOP_S
    lanes = Lanes(config, log)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and config.get_verbosity(pytest.Config.VERBOSITY_TEST_CASES) == 0:
        config.pluginmanager.register(FileLines(reporter, lanes))
    return lanes


def part_of(ports: range, number: int, count: int) -> range:
    """Ports next to each other. ``number``: from 0 on; a worker in the place of one that has
    crashed has a higher one."""
    size = len(ports) // count
    first = size * (number % count)
    return ports[first : first + size]


def _is_first(config: pytest.Config) -> bool:
    return bool(getattr(config, "workerinput", {}).get("workerid", FIRST) == FIRST)


def pytest_configure(config: pytest.Config) -> None:
    """Each worker has ports of its own: one that is chosen is not bound at once, and an IDC that is
    killed has let go of its own. On every worker but the first, the clock says nothing of how slow
    a test is."""
    if workerinput := getattr(config, "workerinput", None):
        number, count = int(workerinput["workerid"][2:]), workerinput["workercount"]
        places.PORTS = part_of(places.PORTS, number, count)
    if _is_first(config):
        return
    import hypothesis  # which takes a while, and only a worker needs it for this

    patient = hypothesis.settings(
        deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.register_profile("patient", patient)
    hypothesis.settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which files are taken. What a cluster needs may be built meanwhile."""
    items.sort(key=_late)
    for item in items:
        asked, unit = set(getattr(item, "fixturenames", ())), unit_of(item.nodeid)
        for fixtures, units in ((PROGRAMS, tuple(WHOLE)), (SHARED, (ENGINES,))):
            if (engines := fixtures & asked) and unit not in units:
                where = ", ".join(place for each in units for place in WHOLE[each])
                raise pytest.UsageError(
                    f"{item.nodeid} waits for {min(engines)}: its place is in {where}"
                )


def _late(item: pytest.Item) -> int:
    order: tuple[str | tuple[str, ...], ...] = (WHOLE[CLUSTER], COMPUTE, *PATIENT)
    found = (late for late, where in enumerate(order, 1) if item.nodeid.startswith(where))
    return next(found, 0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every worker but the first gives way once it has come to what only computes."""
    stash = item.config.stash
    if item.nodeid.startswith(COMPUTE) and not _is_first(item.config) and GIVES_WAY not in stash:
        stash[GIVES_WAY] = True
        os.nice(NICE)
