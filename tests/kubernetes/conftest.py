"""Fixtures of the tests on a real Kubernetes cluster. See docs/kubernetes-testing.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from uuid import uuid4

import pytest
import yaml

from imctl.api.crd import definition
from imctl.api.kinds import KINDS
from imctl.testing.cluster import image, programs, settings
from imctl.testing.cluster.cluster import Cluster, running
from imctl.testing.cluster.lab import until_known


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


@pytest.fixture(scope="module")
def api_server(cluster: Cluster) -> Iterator[Cluster]:
    """With our CRDs in it, and nobody who runs the pods: what becomes of them is for the tests to
    say."""
    crds = yaml.safe_dump_all([definition(kind) for kind in KINDS])
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given=crds)
    for kind in KINDS:
        until_known(cluster, kind.plural)
    cluster.kubectl("cordon", settings.NODE)
    yield cluster
    cluster.kubectl("uncordon", settings.NODE)


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """Of its own for each test."""
    said = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:40].strip("-")
    name = f"{said}-{uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
