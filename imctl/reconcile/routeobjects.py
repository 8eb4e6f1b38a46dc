"""The Kubernetes objects of the route instances of an IDC, as a function of their spec, that of the
IDC object, and the region. Pure.

They are found in the registry of their core, each by the address of its pod, and hold nothing: so
they are a Deployment, and none has a name that stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from math import ceil
from typing import NamedTuple

from imcore.region.model import Region
from imctl.api.model import IdcSpec
from imctl.api.routes import RouteClusterSpec
from imctl.reconcile.besideobjects import GATEWAY, ROUTE, Frame, labels_of, within
from imctl.reconcile.objects import (
    ARGUMENTS,
    CONTAINER_SECURITY,
    GRACE_S,
    MOUNTS,
    asked,
    room,
    taken_down,
)
from imctl.reconcile.observed import Object, Owner
from services.node.roles import Roles

FRONTS, MONITOR = 7445, 7444  # inside its pod


class Routes(NamedTuple):
    """What is wanted of whom. ``region`` has the IDC that ``idc``, its object, names."""

    owner: Owner
    spec: RouteClusterSpec
    idc: IdcSpec
    region: Region

    @property
    def replicas(self) -> int:
        return within(self.spec.replicas, self.spec.autoscaling)


def objects(of: Routes, figures: Mapping[str, float], down: bool = False) -> list[Object]:
    """In the order of applying them; the Deployment is the last. ``down``: no pod is wanted now."""
    frame, rollout = Frame(of.owner, of.spec, of.idc, of.region), of.spec.rollout
    made = [
        frame.account(),
        frame.region_file(),
        _policy(frame, of),
        frame.budget(rollout.max_unavailable),
        frame.names("monitor", MONITOR),
    ]
    if (bounds := of.spec.autoscaling) is not None:
        target = {"type": "Utilization", "averageUtilization": bounds.cpu}
        metric = {"type": "Resource", "resource": {"name": "cpu", "target": target}}
        made.append(frame.autoscaler(bounds.min, bounds.max, metric))
    spec = {
        "replicas": of.replicas,
        "minReadySeconds": rollout.min_ready_s,
        "selector": {"matchLabels": frame.match},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": rollout.max_surge, "maxUnavailable": 0},
        },
        "template": frame.template(frame.pod(GRACE_S, _container(of, figures))),
    }
    workload = frame.object("apps/v1", "Deployment", frame.base, spec=spec)
    return [*made, taken_down(workload) if down else workload]


def _policy(frame: Frame, of: Routes) -> Object:
    """Only gateways of its IDC have to do with it, and who asks how it is."""
    fronts = {"podSelector": {"matchLabels": labels_of(GATEWAY, of.owner.name)}}
    return frame.policy(
        [
            {"from": [fronts], "ports": [{"protocol": "TCP", "port": FRONTS}]},
            {"ports": [{"protocol": "TCP", "port": MONITOR}]},
        ]
    )


def _container(of: Routes, figures: Mapping[str, float]) -> Object:
    address = {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}
    return {
        "name": ROUTE,
        "image": of.spec.image or of.idc.image,
        "command": ["python3", "-m", "services.node"],
        "args": [
            *ARGUMENTS,
            "--idc", of.idc.idc, "--roles", ",".join(Roles.ROUTE.value), "--listen", "0.0.0.0",  # noqa: S104 - in a pod
            "--route-port", str(FRONTS), "--advertise", f"$(POD_IP):{FRONTS}",
            "--monitor-port", str(MONITOR),
        ],
        "env": [{"name": "POD_IP", "valueFrom": address}],
        "ports": [
            {"name": "route", "containerPort": FRONTS},
            {"name": "monitor", "containerPort": MONITOR},
        ],
        "resources": room(of.spec.resources, "1", ceil(figures["route_mib"])),
        "securityContext": deepcopy(CONTAINER_SECURITY),
        "startupProbe": asked("/livez", MONITOR, 2, 150),
        "livenessProbe": asked("/livez", MONITOR, 10, 6),
        "readinessProbe": asked("/readyz", MONITOR, 2, 2),
        "volumeMounts": deepcopy(MOUNTS),
    }  # fmt: skip
