"""The Kubernetes objects of the gateways of an IDC, as a function of their spec, that of the IDC
object, and the region. Pure.

Gateway n of the region file is the pod `NAME-gateway-n`, with a Service of its own at the port of
that gateway: where clients find one gateway they find no other. Inside its pod each listens at the
same port, so that one template makes all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from math import ceil
from types import MappingProxyType
from typing import NamedTuple

from imcore.region.model import Idc, Region
from imcore.region.rules import gateway_ports
from imctl.api.gateways import GatewayClusterSpec
from imctl.api.model import IdcSpec
from imctl.reconcile.besideobjects import (
    GATEWAY,
    Frame,
    match_of,
    numbered,
    within,
    workload_of,
)
from imctl.reconcile.objects import (
    ARGUMENTS,
    CONTAINER_SECURITY,
    MOUNTS,
    asked,
    room,
    taken_down,
)
from imctl.reconcile.observed import Object, Owner
from services.node.roles import Roles

POD_NAME = "statefulset.kubernetes.io/pod-name"
CLIENTS, MONITOR = 7443, 7444  # inside its pod
OTHERS_S, EACH_S, END_S = 5, 10, 15  # finding others, a client's own time, the last farewell
Ends = tuple[tuple[str, int], ...]  # protocol and port


class Fronts(NamedTuple):
    """What is wanted of whom. ``region`` has the IDC that ``idc``, its object, names."""

    owner: Owner
    spec: GatewayClusterSpec
    idc: IdcSpec
    region: Region

    @property
    def base(self) -> str:
        return workload_of(self.owner)

    @property
    def own(self) -> Idc:
        return self.region.idc(self.idc.idc)

    @property
    def replicas(self) -> int:
        """Between the bounds, when it follows the load."""
        return within(self.spec.replicas, self.spec.autoscaling)

    @property
    def match(self) -> dict[str, str]:
        return match_of(self.owner)

    def service(self, number: int) -> str:
        return f"{self.base}-{number}"


def ends_of(region: Region, idc: str, number: int) -> Ends:
    """Where clients find a gateway; nowhere, if the region file has fewer."""
    ports = gateway_ports(region.idc(idc))[number - 1 : number]
    protocols = ("TCP", "UDP") if region.spec.client.quic else ("TCP",)
    return tuple((protocol, port) for _, port in ports for protocol in protocols)


def grace_s(idc: Idc, connects_per_s: int) -> int:
    """For all clients of a full gateway to go to another one, which takes so many a second while
    it is busy otherwise."""
    full = idc.capacity.sessions / idc.gateways
    return OTHERS_S + ceil(full / (connects_per_s / 2)) + EACH_S + END_S


def objects(
    of: Fronts,
    figures: Mapping[str, float],
    down: bool = False,
    told: Mapping[int, Ends] = MappingProxyType({}),
) -> list[Object]:
    """In the order of applying them; the StatefulSet is the last, and gives all of its pods what is
    wanted (``from_pod``). ``down``: no pod is wanted now. ``told``: by number, where clients were
    told to find a gateway by the pod that there is; they find it there until it is replaced."""
    return _Maker(of, figures, down, told).all()


def from_pod(workload: Object, partition: int) -> Object:
    """The StatefulSet whose pods from this one on, counted from 0, get what is wanted, while the
    others keep what they have."""
    return {**workload, "spec": {**workload["spec"], "updateStrategy": _rolling(partition)}}


class _Maker:
    def __init__(
        self, of: Fronts, figures: Mapping[str, float], down: bool, told: Mapping[int, Ends]
    ) -> None:
        self._of, self._figures, self._own, self._down = of, figures, of.own, down
        self._told = told
        self._quic = of.region.spec.client.quic
        self._frame = Frame(of.owner, of.spec, of.idc, of.region)

    def all(self) -> list[Object]:
        frame = self._frame
        made = [
            frame.account(),
            frame.region_file(),
            self._network_policy(),
            frame.budget(self._of.spec.rollout.max_unavailable),
            frame.names("monitor", MONITOR),
            *(self._service(number) for number in range(1, self._of.replicas + 1)),
        ]
        if self._of.spec.autoscaling is not None:
            made.append(self._autoscaler())
        workload = self._stateful_set()
        return [*made, taken_down(workload) if self._down else workload]

    def _network_policy(self) -> Object:
        ports = [{"protocol": "TCP", "port": port} for port in (CLIENTS, MONITOR)]
        told = {protocol for ends in self._told.values() for protocol, _ in ends}
        if self._quic or "UDP" in told:
            ports.append({"protocol": "UDP", "port": CLIENTS})
        return self._frame.policy([{"ports": ports}])

    def _service(self, number: int) -> Object:
        """Of one gateway."""
        wanted = ends_of(self._of.region, self._own.name, number)
        taken = set(wanted)
        if self._of.idc.service == "NodePort":  # no two Services can have the same one
            for other in range(1, self._of.region.idc(self._own.name).gateways + 1):
                taken.update(ends_of(self._of.region, self._own.name, other))
        former = [each for each in self._told.get(number, ()) if each not in taken]
        ports = [
            _port(f"gateway{'-udp' if protocol == 'UDP' else ''}{more}", found, CLIENTS, protocol)
            for ends, more in ((wanted, ""), (former, "-before"))
            for protocol, found in ends
        ]
        if self._of.idc.service == "NodePort":
            ports = [{**port, "nodePort": port["port"]} for port in ports]
        spec: Object = {
            "type": self._of.idc.service,
            "selector": {**self._of.match, POD_NAME: self._of.service(number)},
            "ports": ports,
        }
        if self._of.idc.service != "ClusterIP":
            spec["externalTrafficPolicy"] = "Local"  # clients are known by their addresses
        return self._frame.object("v1", "Service", self._of.service(number), spec=spec)

    def _autoscaler(self) -> Object:
        bounds = self._of.spec.autoscaling
        assert bounds is not None
        target = {"type": "AverageValue", "averageValue": str(bounds.connections)}
        metric = {"metric": {"name": "im_gateway_connections"}, "target": target}
        return self._frame.autoscaler(bounds.min, bounds.max, {"type": "Pods", "pods": metric})

    def _stateful_set(self) -> Object:
        # Sessions that a process left for its next one are of this pod, and no other.
        grace = grace_s(self._own, self._of.region.spec.limits.connects_per_s)
        spec = {
            "serviceName": self._of.base,
            "replicas": self._of.replicas,
            "ordinals": {"start": 1},  # as the region file counts them
            "podManagementPolicy": "Parallel",  # none waits for another one to start
            "minReadySeconds": self._of.spec.rollout.min_ready_s,
            "selector": {"matchLabels": self._of.match},
            "updateStrategy": _rolling(0),
            "template": self._frame.template(self._frame.pod(grace, self._container())),
        }
        return self._frame.object("apps/v1", "StatefulSet", self._of.base, spec=spec)

    def _container(self) -> Object:
        return {
            "name": GATEWAY,
            "image": self._of.spec.image or self._of.idc.image,
            "command": ["python3", "-m", "services.node"],
            "args": [
                *ARGUMENTS,
                "--idc", self._own.name, "--roles", ",".join(Roles.FRONT.value),
                "--instance", "$(NUMBER)", "--listen", "0.0.0.0",  # noqa: S104 - in a pod
                "--gateway-port", str(CLIENTS), "--monitor-port", str(MONITOR), "--leave",
            ],
            "env": numbered(),
            "ports": [
                {"name": "gateway", "containerPort": CLIENTS},
                {"name": "monitor", "containerPort": MONITOR},
                *(
                    [{"name": "gateway-udp", "containerPort": CLIENTS, "protocol": "UDP"}]
                    if self._quic
                    else []
                ),
            ],
            "resources": room(self._of.spec.resources, "1", self._memory_mib()),
            "securityContext": deepcopy(CONTAINER_SECURITY),
            "startupProbe": asked("/livez", MONITOR, 2, 150),
            "livenessProbe": asked("/livez", MONITOR, 10, 6),
            "readinessProbe": asked("/readyz", MONITOR, 2, 2),
            "volumeMounts": deepcopy(MOUNTS),
        }  # fmt: skip

    def _memory_mib(self) -> int:
        sessions = self._own.capacity.sessions / self._own.gateways
        figures = self._figures
        # Twice: a hot restart first tries in another process whether its successor could start.
        return ceil(2 * figures["process_mib"] + sessions * figures["connection_kib"] / 1024)


def _rolling(partition: int) -> Object:
    return {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}}


def _port(name: str, found: int, inside: int, protocol: str = "TCP") -> Object:
    return {"name": name, "protocol": protocol, "port": found, "targetPort": inside}
