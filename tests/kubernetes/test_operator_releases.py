"""Releases of the operator's chart, with its pods: two that would work in all namespaces, an
upgrade, the way back, and the end of one of them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imctl.testing.cluster import image
from imctl.testing.cluster.cluster import Cluster
from imctl.testing.cluster.lab import OPERATOR
from tests.kubernetes.test_admission import IDC, apply
from tests.kubernetes.test_operator_live import Operators, prepare, until

LEASE = ("lease", "imctl-operator-of-all-namespaces", "--namespace", "default")
WAIT = ("--wait", "--timeout", "300s")  # an image is unpacked, a pod's node busy


class Releases:
    def __init__(self, cluster: Cluster, first: str) -> None:
        self.cluster = cluster
        self.namespaces = {"one": first, "two": f"{first}-2"}
        cluster.kubectl("create", "namespace", self.namespaces["two"])

    def helm(self, verb: str, release: str, *more: str) -> None:
        self.cluster.helm(verb, release, *more, "--namespace", self.namespaces[release])

    def put(self, verb: str, release: str, *more: str) -> None:
        values = ("--set", f"image={image.NAME}", "--set", "replicas=1")
        self.helm(verb, release, str(OPERATOR), *values, *more, *WAIT)

    def leads(self) -> str:
        """Whose pod holds the Lease of all namespaces; empty: none."""
        path = "jsonpath={.spec.holderIdentity}"
        holder = self.cluster.kubectl("get", *LEASE, "--ignore-not-found", "-o", path)
        found = [name for name in self.namespaces if holder.startswith(f"{name}-im-operator-")]
        return found[0] if found else ""

    def limit(self, release: str) -> str:
        path = "jsonpath={.spec.template.spec.containers[0].resources.limits.memory}"
        where = ("--namespace", self.namespaces[release])
        return self.cluster.kubectl("get", "deploy", f"{release}-im-operator", *where, "-o", path)

    def end(self) -> None:
        for release, namespace in self.namespaces.items():
            self.helm("uninstall", release, "--ignore-not-found")
            self.cluster.kubectl("delete", "namespace", namespace, "--wait=false")
        self.cluster.kubectl("delete", *LEASE, "--ignore-not-found")


@pytest.fixture
def releases(cluster: Cluster, namespace: str) -> Iterator[Releases]:
    made = Releases(cluster, namespace)
    yield made
    made.end()


def test_one_of_two_works_and_what_it_made_outlives_upgrade_rollback_and_end(
    cluster: Cluster,
    releases: Releases,
    tmp_path: Path,
    figures: Callable[[str, object], None],
) -> None:
    namespace = releases.namespaces["one"]
    seen = Operators(cluster, namespace, tmp_path)
    releases.put("install", "one")
    until(lambda: releases.leads() == "one")
    prepare(cluster, namespace)
    nowhere = copy.deepcopy(IDC)  # what runs there is not what this is about
    nowhere["spec"] |= {"node_selector": {"imctl.dev/nowhere": "true"}}
    apply(cluster, namespace, nowhere)

    def repairs() -> None:
        cluster.kubectl("delete", "service", "fra-idc-peer", "--namespace", namespace)
        until(lambda: seen.get("service", "fra-idc-peer") is not None)

    until(lambda: seen.get("service", "fra-idc-peer") is not None)
    made = made_of(seen)
    releases.put("install", "two")  # its pod is ready: it could take the Lease
    time.sleep(3)
    assert releases.leads() == "one"
    repairs()

    releases.put("upgrade", "one", "--set", "resources.limits.memory=300Mi")
    assert releases.limit("one") == "300Mi"
    until(lambda: releases.leads() != "")
    repairs()
    releases.helm("rollback", "one", "1", *WAIT)
    assert releases.limit("one") == "256Mi"
    until(lambda: releases.leads() != "")
    repairs()
    assert made_of(seen) == made

    leads = releases.leads()
    other = "two" if leads == "one" else "one"
    releases.helm("uninstall", leads)
    took = until(lambda: releases.leads() == other)
    figures("from the end of a release until another one leads, s", round(took, 1))
    repairs()
    assert made_of(seen) == made


def made_of(seen: Operators) -> str:
    """The StatefulSet of the IDC: a new one would have another uid."""
    return str(seen.get("statefulset", "fra-idc")["metadata"]["uid"])
