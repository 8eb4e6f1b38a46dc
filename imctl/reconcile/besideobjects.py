"""What is alike in the Kubernetes objects of all kinds whose pods stand beside an IDC's own.
Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from imcore.region.model import Region
from imctl.api.beside import BesideSpec
from imctl.api.kinds import API_VERSION, GATEWAY_CLUSTER, IM_CLUSTER, ROUTE_CLUSTER
from imctl.api.model import IdcSpec
from imctl.reconcile.objects import (
    POD_SECURITY,
    REGION_FILE,
    REGION_LABEL,
    TEMPLATE,
    hash_of,
    owned,
    pki_volume,
    placed,
    region_text,
)
from imctl.reconcile.observed import Object, Owner

GATEWAY, ROUTE, IM = "gateway", "route", "im"
POD_INDEX = "apps.kubernetes.io/pod-index"
SETTLED_S = 300  # what follows the load goes down no sooner after it has


class Bounds(Protocol):
    """Of what follows the load."""

    min: int
    max: int


class Pods(NamedTuple):
    """``component``: by their labels; the ending of their workload's name. ``workload``: its kind.
    ``ready``: when they are as they should be."""

    component: str
    workload: str
    ready: bool = True


BESIDE: Mapping[str, Pods] = MappingProxyType(
    {
        GATEWAY_CLUSTER.name: Pods(GATEWAY, "StatefulSet"),
        ROUTE_CLUSTER.name: Pods(ROUTE, "Deployment"),
        IM_CLUSTER.name: Pods(IM, "StatefulSet", ready=False),
    }
)


def match_of(owner: Owner) -> dict[str, str]:
    """Labels of its pods."""
    return labels_of(BESIDE[owner.kind].component, owner.name)


def labels_of(component: str, name: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "imctl",
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/instance": name,
    }


def selector_of(owner: Owner) -> str:
    return ",".join(f"{name}={value}" for name, value in match_of(owner).items())


def workload_of(owner: Owner) -> str:
    """The name of what makes its pods; all else that is made has it, or begins with it."""
    return f"{owner.name}-{BESIDE[owner.kind].component}"


def within(replicas: int, bounds: Bounds | None) -> int:
    """As many as are wanted: between the bounds, if there are some."""
    return replicas if bounds is None else min(max(replicas, bounds.min), bounds.max)


class Frame:
    """Of one owner, whose ``spec`` names the object that ``idc`` is the spec of; ``region`` has
    that IDC."""

    def __init__(self, owner: Owner, spec: BesideSpec, idc: IdcSpec, region: Region) -> None:
        self._owner, self._spec, self._idc = owner, spec, idc
        self._text = region_text(region)
        self._hash = hash_of(self._text)
        self._labels = {**match_of(owner), REGION_LABEL: region.metadata.name}
        self.base = workload_of(owner)

    @property
    def match(self) -> dict[str, str]:
        return match_of(self._owner)

    def object(self, api: str, kind: str, name: str, **body: Any) -> Object:
        return owned(self._owner, self._labels, api, kind, name, body)

    def account(self) -> Object:
        return self.object("v1", "ServiceAccount", self.base, automountServiceAccountToken=False)

    def region_file(self) -> Object:
        """One for each region file: what a pod was given does not change under it."""
        data = {"region.yaml": self._text}
        return self.object("v1", "ConfigMap", self._region_name(), immutable=True, data=data)

    def _region_name(self) -> str:
        return f"{self.base}-region-{self._hash}"

    def policy(self, ingress: Sequence[Object]) -> Object:
        spec = {
            "podSelector": {"matchLabels": self.match},
            "policyTypes": ["Ingress"],
            "ingress": list(ingress),
        }
        return self.object("networking.k8s.io/v1", "NetworkPolicy", self.base, spec=spec)

    def budget(self, max_unavailable: int) -> Object:
        spec = {
            "maxUnavailable": max_unavailable,
            "selector": {"matchLabels": self.match},
            # One that serves nobody is in nobody's way.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        }
        return self.object("policy/v1", "PodDisruptionBudget", self.base, spec=spec)

    def names(self, port: str, number: int) -> Object:
        """Of the pods, for each other and for whoever reads their metrics."""
        spec = {
            "clusterIP": "None",
            "selector": self.match,
            "ports": [{"name": port, "protocol": "TCP", "port": number, "targetPort": number}],
        }
        return self.object("v1", "Service", self.base, spec=spec)

    def autoscaler(self, least: int, most: int, metric: Object) -> Object:
        """It scales the owner, not what that has made."""
        target = {
            "apiVersion": API_VERSION, "kind": self._owner.kind, "name": self._owner.name,
        }  # fmt: skip
        slowly = {
            "stabilizationWindowSeconds": SETTLED_S,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
        }
        spec = {
            "scaleTargetRef": target,
            "minReplicas": least,
            "maxReplicas": most,
            "metrics": [metric],
            # Each one that goes sends those whom it serves to the others.
            "behavior": {"scaleDown": slowly},
        }
        return self.object("autoscaling/v2", "HorizontalPodAutoscaler", self.base, spec=spec)

    def template(self, pod: Object, more: Mapping[str, str] = MappingProxyType({})) -> Object:
        """With the marks by which its pods are known. ``more``: labels."""
        marks = {TEMPLATE: hash_of(pod), REGION_FILE: self._hash}
        labels = {**self._labels, **more}
        return {"metadata": {"labels": labels, "annotations": marks}, "spec": pod}

    def pod(self, grace_s: int, container: Object, kept: bool = False) -> Object:
        """``kept``: its data are on a volume of the workload's; else they go with it."""
        idc, own = self._idc, self._idc.idc
        pod: Object = {
            "serviceAccountName": self.base,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": grace_s,
            "securityContext": deepcopy(POD_SECURITY),
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": key,
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": self.match},
                }
                for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
            ],
            "containers": [container],
            "volumes": [
                *([] if kept else [{"name": "data", "emptyDir": {}}]),
                {"name": "tmp", "emptyDir": {}},
                {"name": "region", "configMap": {"name": self._region_name()}},
                pki_volume(own, idc.certificates, f"{self._spec.idc}-idc"),
            ],
        }
        if idc.drills_from:
            # As of its IDC: a drill that kills the one kills the others.
            pod["shareProcessNamespace"] = True
        pod |= placed(self._spec)
        if idc.image_pull_secret:
            pod["imagePullSecrets"] = [{"name": idc.image_pull_secret}]
        return pod


def numbered() -> list[Object]:
    """The environment of a container of a StatefulSet: $(NUMBER) is that of its pod."""
    path = f"metadata.labels['{POD_INDEX}']"
    field = {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}
    return [{"name": "NUMBER", "valueFrom": field}]
