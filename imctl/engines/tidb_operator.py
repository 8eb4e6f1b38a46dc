"""An IDC's TiKV on Kubernetes, as objects of TiDB Operator v2: the cluster, its PD, its stores.
Objects only; nothing is applied, and no secret stands in them."""

from __future__ import annotations

import re
from typing import Any

from imcore.errors import BadInput
from imctl.engines.machines import Layout, Machines

API = "core.pingcap.com/v1alpha1"
REPLICAS = 3  # of each row, in as many stores
_VERSION = re.compile(r"v?[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?")
Object = dict[str, Any]

# TiDB Operator tells PD of each store in which zone and on which machine it is.
_PD_CONFIG = f"""\
[replication]
max-replicas = {REPLICAS}
location-labels = ["zone", "host"]
"""


def objects(name: str, layout: Layout, version: str, tls: bool) -> list[Object]:
    """All three by the IDC's ``name``: PD is then at NAME-pd:2379. Raises BadInput."""
    if layout.stores.count < REPLICAS:
        got = layout.stores.count
        raise BadInput(f"--stores: expected at least {REPLICAS}, one for each replica, got {got}")
    if not _VERSION.fullmatch(version):
        raise BadInput(f"--tikv-version: expected a version such as v8.5.2, got {version!r}")
    cluster = {
        "apiVersion": API,
        "kind": "Cluster",
        "metadata": _named(name),
        "spec": {"tlsCluster": {"enabled": tls}},
    }
    return [
        cluster,
        _group("PDGroup", "pd", name, layout.pd, layout, version, {"config": _PD_CONFIG}),
        _group("TiKVGroup", "tikv", name, layout.stores, layout, version, {}),
    ]


def _group(
    kind: str,
    component: str,
    name: str,
    machines: Machines,
    layout: Layout,
    version: str,
    more: Object,
) -> Object:
    volume = {
        "name": "data",
        "mounts": [{"type": "data"}],
        "storage": machines.disk,
        **({"storageClassName": layout.storage_class} if layout.storage_class else {}),
    }
    # What two of them hold must not be lost with one machine.
    apart = {
        "labelSelector": {
            "matchLabels": {"pingcap.com/cluster": name, "pingcap.com/component": component}
        },
        "topologyKey": "kubernetes.io/hostname",
    }
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    template = {
        "version": version,
        "resources": machines.requests(),
        **more,
        "volumes": [volume],
        "overlay": {"pod": {"spec": {"affinity": affinity}}},
    }
    spec = {
        "cluster": {"name": name},
        "replicas": machines.count,
        "template": {"spec": template},
    }
    return {"apiVersion": API, "kind": kind, "metadata": _named(name), "spec": spec}


def _named(name: str) -> Object:
    return {"name": name, "labels": {"app.kubernetes.io/managed-by": "imctl"}}
