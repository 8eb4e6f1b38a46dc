"""Fixtures of every test folder, and what the tests show at the end of a run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import pytest

from imcore import pki
from imctl.engines.binaries import ENGINES, Program, find, missing
from imctl.testing import etcd, kafka, s3, tikv
from imctl.testing.cluster import programs
from tests import again, lanes

PKI_NAMES = ("fra", "iad", "sin", "witness", "linkproxy", "admin", "operator", "viewer")
FIGURE = "figure"


@pytest.fixture(scope="session")
def pki_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real pki folder: a CA, a certificate for each of PKI_NAMES, region keys."""
    folder = tmp_path_factory.mktemp("pki")
    pki.init(folder, dict.fromkeys(PKI_NAMES, pki.LOCAL_HOSTS), datetime.now(UTC))
    yield folder


# ----------------------------------------------------------------------------------- figures


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """``figures("writes at fra", 1100)``: a measured value that the end of the run shows, whether
    or not the test passed. Printing is not enough: what a good test printed is thrown away."""

    def note(what: str, value: object) -> None:
        # Travels with the test's report, also from a worker.
        request.node.user_properties.append((FIGURE, (request.node.name, what, str(value))))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    noted = [
        figure
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "teardown"
        for name, figure in report.user_properties
        if name == FIGURE
    ]
    if noted:
        terminalreporter.section("figures")
        for test, what, value in noted:
            terminalreporter.write_line(f"{what}: {value}  ({test})")
    if "IM_TIKV_PD" not in os.environ:
        terminalreporter.write_line(
            "not run: the KV contract on a real TiKV (IM_TIKV_PD=HOST:PORT of its PD runs it)"
        )


# ----------------------------------------------------------------------------- what is needed


def impossible_here(why: str, remedy: str) -> NoReturn:
    """Skips the test, with one line that says what to do. In CI it fails: a test that is left out
    in silence there is left out for good."""
    line = f"{why}; {remedy}"
    if os.environ.get("CI", "").lower() in ("", "0", "false"):
        pytest.skip(line)
    pytest.fail(f"CI must run this test: {line}", pytrace=False)


@pytest.fixture
def mount_tmpfs(tmp_path: Path) -> Iterator[Callable[[Path, str], None]]:
    """``mount_tmpfs(folder, "1m")``: a real file system of that size, to be filled up. The folder
    lies below ``tmp_path``; it is unmounted after the test."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> None:
        assert tmp_path in folder.parents
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            impossible_here(
                f"a small tmpfs cannot be mounted ({done.stderr.strip()})",
                "run it as root with the right to mount (docker: --cap-add SYS_ADMIN)",
            )
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        impossible_here("no browser on this machine", "`apt-get install chromium`")
    return found


@pytest.fixture(scope="session")
def every_engine() -> None:
    """For tests that run all of them."""
    if lacking := missing(list(ENGINES)):
        impossible_here("not every engine can run here", lacking)


def engine_program(engine: str, why: str) -> Program:
    found = find(engine)
    if found is None:
        impossible_here(why, f"`imctl engines install {engine}` gets it")
    return found


@pytest.fixture(scope="session")
def etcd_program() -> Program:
    return engine_program("etcd", "no etcd on this machine")


@pytest.fixture(scope="module")
def etcd_process(
    etcd_program: Program, pki_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[etcd.EtcdProcess]:
    """One for the tests of a module, which each take a key prefix of their own."""
    with etcd.running(etcd_program, tmp_path_factory.mktemp("etcd"), pki_dir) as process:
        yield process


@pytest.fixture(scope="session")
def kafka_program() -> Program:
    return engine_program("kafka", "no Kafka (or no Java) on this machine")


@pytest.fixture(scope="session")
def kafka_process(
    kafka_program: Program, pki_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kafka.KafkaProcess]:
    """One for all tests that do it no harm; each takes a topic prefix of its own."""
    with kafka.running(kafka_program, tmp_path_factory.mktemp("kafka"), pki_dir) as process:
        yield process


@pytest.fixture(scope="session")
def tikv_programs() -> tuple[Program, Program]:
    """PD and the TiKV-protocol mock."""
    pd, store = find("pd"), find("tikv-mock")
    if pd is None or store is None:
        impossible_here(
            "no PD and TiKV-protocol mock on this machine",
            "`imctl engines install pd tikv-mock` builds them",
        )
    return pd, store


@pytest.fixture(scope="session")
def tikv_processes(
    tikv_programs: tuple[Program, Program], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tikv.TikvProcesses]:
    """One pair for tests that leave it as it is and take a key prefix of their own."""
    with tikv.running(*tikv_programs, tmp_path_factory.mktemp("tikv")) as processes:
        yield processes


@pytest.fixture(scope="session")
def s3_program() -> Program:
    return engine_program("versitygw", "no S3 server on this machine")


@pytest.fixture(scope="module")
def s3_process(
    s3_program: Program, pki_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[s3.S3Process]:
    """One for the tests of a module, which each take a key prefix of their own."""
    with s3.running(s3_program, tmp_path_factory.mktemp("s3"), pki_dir) as process:
        yield process


@pytest.fixture(scope="session")
def cluster_programs() -> programs.Programs:
    """Of a Kubernetes cluster."""
    with programs.getting():  # waits for a `make cluster` that goes on
        found = programs.find()
    if found is None:
        impossible_here("no Kubernetes cluster can run here", programs.missing())
    return found


# --------------------------------------------------------------- in which order, and whether again

pytest_itemcollected = again.pytest_itemcollected
pytest_collection_modifyitems = lanes.pytest_collection_modifyitems
pytest_configure = lanes.pytest_configure
pytest_runtest_setup = lanes.pytest_runtest_setup
pytest_xdist_make_scheduler = lanes.pytest_xdist_make_scheduler
