"""Fixtures of the tests on a real Kubernetes cluster. See docs/kubernetes-testing.md."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from imctl.testing.cluster import image, programs
from imctl.testing.cluster.cluster import Cluster, running


@pytest.fixture(scope="session")
def cluster(
    cluster_programs: programs.Programs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """One for all tests, each of which takes a namespace of its own; our image is in it."""
    with programs.getting():
        archive = image.build()
    with running(cluster_programs, tmp_path_factory.mktemp("kubernetes")) as started:
        started.load(archive)
        yield started


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """Of its own for each test."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name)[:60].strip("-")
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
