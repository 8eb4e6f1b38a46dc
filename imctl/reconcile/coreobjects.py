"""The Kubernetes objects of the cores that stand by beside an IDC's own, as a function of their
spec, that of the IDC object, and the region. Pure.

Each has a number, by which its audit chain is told from those of the others, and a volume of its
own. The IDC's own core is the first, so they begin with the second. Which one serves is for their
lease to say: the IDC object's Services lead to whichever is ready.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from imcore.region.model import Region
from imctl.api.cores import ImClusterSpec
from imctl.api.model import IdcSpec
from imctl.reconcile.besideobjects import IM, Frame, numbered
from imctl.reconcile.objects import (
    CORE_OF,
    GRACE_S,
    REGION_LABEL,
    container,
    kept_volume,
    part_of,
    secret_mounts,
    secret_volumes,
    taken_down,
)
from imctl.reconcile.observed import Object, Owner, Port

FIRST = 2


class Cores(NamedTuple):
    """What is wanted of whom. ``region`` has the IDC that ``idc``, its object, names."""

    owner: Owner
    spec: ImClusterSpec
    idc: IdcSpec
    region: Region


def embedded(idc: IdcSpec, region: Region) -> Iterator[str]:
    """What the IDC keeps on a disk of its own, which no core elsewhere reaches. ``region`` has
    it."""
    engines, media = region.idc(idc.idc).engines, region.spec.media
    wanted = {
        "log": ("kafka", engines.log.kafka),
        "kv": ("tikv", engines.kv.tikv),
        "registry": ("etcd", engines.registry.etcd),
        **({"blobs": ("s3", engines.blobs.s3)} if media is not None else {}),
    }
    for port, (engine, given) in wanted.items():
        if given is None:
            yield (
                f"engines.{port} of {idc.idc} in Region {idc.region}: expected {engine}, which "
                "a core elsewhere reaches, got embedded"
            )


def objects(
    of: Cores,
    figures: Mapping[str, float],
    down: bool = False,
    listens: Sequence[Port] = (),
) -> list[Object]:
    """In the order of applying them; the StatefulSet is the last. ``down``: no pod is wanted now.
    ``listens``: where the pods do that there are."""
    frame, part = Frame(of.owner, of.spec, of.idc, of.region), part_of(of.idc, of.region, figures)
    ports = dict.fromkeys([(port, "TCP") for port in part.ports().values()])
    ports |= dict.fromkeys((port, protocol) for _, port, protocol in listens)
    ingress = {"ports": [{"protocol": protocol, "port": port} for port, protocol in ports]}
    more = ["--standby", "--instance", "$(NUMBER)"]
    more += ["--faults"] if of.idc.drills_from else []
    own = container(
        part, IM, of.spec.image or of.idc.image, of.spec.resources, more,
        secret_mounts(of.idc.secrets),
    )  # fmt: skip
    own["env"] = numbered()
    pod = frame.pod(of.idc.termination_grace_s or GRACE_S, own, kept=True)
    pod["affinity"] = _apart(of)
    pod["volumes"] += secret_volumes(of.idc.secrets)
    spec = {
        "serviceName": frame.base,
        "replicas": of.spec.replicas,
        "ordinals": {"start": FIRST},
        # What waited for one to be ready would wait for ever: ready is only the one that serves.
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "OnDelete"},
        "selector": {"matchLabels": frame.match},
        **kept_volume(of.spec.storage),
        "template": frame.template(pod, {CORE_OF: of.spec.idc}),
    }
    workload = frame.object("apps/v1", "StatefulSet", frame.base, spec=spec)
    return [
        frame.account(),
        frame.region_file(),
        frame.policy([ingress]),
        frame.names("peer", part.peer),
        taken_down(workload) if down else workload,
    ]


def _apart(of: Cores) -> Object:
    """From the other cores of the IDC above all, and from other parts of the region."""
    labels = {100: {CORE_OF: of.spec.idc}, 10: {REGION_LABEL: of.region.metadata.name}}
    wanted = [
        {
            "weight": weight,
            "podAffinityTerm": {
                "labelSelector": {"matchLabels": match},
                "topologyKey": "kubernetes.io/hostname",
            },
        }
        for weight, match in labels.items()
    ]
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": wanted}}
