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
from typing import Any, NamedTuple

from imcore.region.model import Idc, Region
from imcore.region.rules import gateway_ports
from imctl.api.gateways import GatewayClusterSpec
from imctl.api.kinds import API_VERSION
from imctl.api.model import IdcSpec
from imctl.reconcile.objects import (
    ARGUMENTS,
    CONTAINER_SECURITY,
    MOUNTS,
    POD_SECURITY,
    REGION_FILE,
    REGION_LABEL,
    TEMPLATE,
    hash_of,
    owned,
    pace,
    pki_volume,
    placed,
    region_text,
    room,
    taken_down,
)
from imctl.reconcile.observed import Object, Owner
from services.node.roles import Roles

COMPONENT = "gateway"
POD_NAME = "statefulset.kubernetes.io/pod-name"
POD_INDEX = "apps.kubernetes.io/pod-index"
CLIENTS, MONITOR = 7443, 7444  # inside its pod
OTHERS_S, EACH_S, END_S = 5, 10, 15  # finding others, a client's own time, the last farewell
Ends = tuple[tuple[str, int], ...]  # protocol and port
SETTLED_S = 300  # what follows the load goes down no sooner after it has


class Fronts(NamedTuple):
    """What is wanted of whom. ``region`` has the IDC that ``idc``, its object, names."""

    owner: Owner
    spec: GatewayClusterSpec
    idc: IdcSpec
    region: Region

    @property
    def base(self) -> str:
        return f"{self.owner.name}-{COMPONENT}"

    @property
    def own(self) -> Idc:
        return self.region.idc(self.idc.idc)

    @property
    def replicas(self) -> int:
        """Between the bounds, when it follows the load."""
        bounds = self.spec.autoscaling
        if bounds is None:
            return self.spec.replicas
        return min(max(self.spec.replicas, bounds.min), bounds.max)

    @property
    def match(self) -> dict[str, str]:
        return match_of(self.owner)

    def service(self, number: int) -> str:
        return f"{self.base}-{number}"


def match_of(owner: Owner) -> dict[str, str]:
    """Labels of its pods."""
    return {
        "app.kubernetes.io/name": "imctl",
        "app.kubernetes.io/component": COMPONENT,
        "app.kubernetes.io/instance": owner.name,
    }


def selector_of(owner: Owner) -> str:
    return ",".join(f"{name}={value}" for name, value in match_of(owner).items())


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
        self._text = region_text(of.region)
        self._hash = hash_of(self._text)
        self._quic = of.region.spec.client.quic
        self._labels = {**of.match, REGION_LABEL: of.region.metadata.name}

    def all(self) -> list[Object]:
        made = [
            self._object(
                "v1", "ServiceAccount", self._of.base, automountServiceAccountToken=False
            ),
            self._object(
                "v1", "ConfigMap", self._config_map(),
                immutable=True, data={"region.yaml": self._text},
            ),
            self._network_policy(),
            self._budget(),
            self._names(),
            *(self._service(number) for number in range(1, self._of.replicas + 1)),
        ]  # fmt: skip
        if self._of.spec.autoscaling is not None:
            made.append(self._autoscaler())
        workload = self._stateful_set()
        return [*made, taken_down(workload) if self._down else workload]

    def _object(self, api: str, kind: str, name: str, **body: Any) -> Object:
        return owned(self._of.owner, self._labels, api, kind, name, body)

    def _config_map(self) -> str:
        return f"{self._of.base}-region-{self._hash}"

    def _network_policy(self) -> Object:
        ports = [{"protocol": "TCP", "port": port} for port in (CLIENTS, MONITOR)]
        told = {protocol for ends in self._told.values() for protocol, _ in ends}
        if self._quic or "UDP" in told:
            ports.append({"protocol": "UDP", "port": CLIENTS})
        spec = {
            "podSelector": {"matchLabels": self._of.match},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": ports}],
        }
        return self._object("networking.k8s.io/v1", "NetworkPolicy", self._of.base, spec=spec)

    def _budget(self) -> Object:
        spec = {
            "maxUnavailable": self._of.spec.rollout.max_unavailable,
            "selector": {"matchLabels": self._of.match},
            # One that serves nobody is in nobody's way.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        }
        return self._object("policy/v1", "PodDisruptionBudget", self._of.base, spec=spec)

    def _names(self) -> Object:
        """Of the pods, for each other and for whoever reads their metrics."""
        spec = {
            "clusterIP": "None",
            "selector": self._of.match,
            "ports": [_port("monitor", MONITOR, MONITOR)],
        }
        return self._object("v1", "Service", self._of.base, spec=spec)

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
        return self._object("v1", "Service", self._of.service(number), spec=spec)

    def _autoscaler(self) -> Object:
        bounds = self._of.spec.autoscaling
        assert bounds is not None
        target = {"type": "AverageValue", "averageValue": str(bounds.connections)}
        metric = {"metric": {"name": "im_gateway_connections"}, "target": target}
        slowly = {
            "stabilizationWindowSeconds": SETTLED_S,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
        }
        owner = self._of.owner
        spec = {
            "scaleTargetRef": {
                "apiVersion": API_VERSION, "kind": owner.kind, "name": owner.name,
            },
            "minReplicas": bounds.min,
            "maxReplicas": bounds.max,
            "metrics": [{"type": "Pods", "pods": metric}],
            # Each one that goes sends its clients to the others.
            "behavior": {"scaleDown": slowly},
        }  # fmt: skip
        return self._object("autoscaling/v2", "HorizontalPodAutoscaler", self._of.base, spec=spec)

    def _stateful_set(self) -> Object:
        pod = self._pod()
        marks = {TEMPLATE: hash_of(pod), REGION_FILE: self._hash}
        metadata = {"labels": self._labels, "annotations": marks}
        spec = {
            "serviceName": self._of.base,
            "replicas": self._of.replicas,
            "ordinals": {"start": 1},  # as the region file counts them
            "podManagementPolicy": "Parallel",  # none waits for another one to start
            "minReadySeconds": self._of.spec.rollout.min_ready_s,
            "selector": {"matchLabels": self._of.match},
            "updateStrategy": _rolling(0),
            "template": {"metadata": metadata, "spec": pod},
        }
        return self._object("apps/v1", "StatefulSet", self._of.base, spec=spec)

    def _pod(self) -> Object:
        idc = self._of.idc
        limit = self._of.region.spec.limits.connects_per_s
        pod: Object = {
            "serviceAccountName": self._of.base,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": grace_s(self._own, limit),
            "securityContext": deepcopy(POD_SECURITY),
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": key,
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": self._of.match},
                }
                for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
            ],
            "containers": [self._container()],
            "volumes": [
                # Sessions that a process left for its next one: of this pod, and no other.
                {"name": "data", "emptyDir": {}},
                {"name": "tmp", "emptyDir": {}},
                {"name": "region", "configMap": {"name": self._config_map()}},
                pki_volume(self._own.name, idc.certificates, f"{self._of.spec.idc}-idc"),
            ],
        }
        if idc.drills_from:
            # As of its IDC: a drill that kills the one kills the others.
            pod["shareProcessNamespace"] = True
        pod |= placed(self._of.spec)
        if idc.image_pull_secret:
            pod["imagePullSecrets"] = [{"name": idc.image_pull_secret}]
        return pod

    def _container(self) -> Object:
        return {
            "name": COMPONENT,
            "image": self._of.spec.image or self._of.idc.image,
            "command": ["python3", "-m", "services.node"],
            "args": [
                *ARGUMENTS,
                "--idc", self._own.name, "--roles", ",".join(Roles.FRONT.value),
                "--instance", "$(NUMBER)", "--listen", "0.0.0.0",  # noqa: S104 - in a pod
                "--gateway-port", str(CLIENTS), "--monitor-port", str(MONITOR), "--leave",
            ],
            "env": [
                {
                    "name": "NUMBER",
                    "valueFrom": {
                        "fieldRef": {
                            "apiVersion": "v1", "fieldPath": f"metadata.labels['{POD_INDEX}']",
                        }
                    },
                }
            ],
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
            "startupProbe": _asked("/livez", 2, 150),
            "livenessProbe": _asked("/livez", 10, 6),
            "readinessProbe": _asked("/readyz", 2, 2),
            "volumeMounts": deepcopy(MOUNTS),
        }  # fmt: skip

    def _memory_mib(self) -> int:
        sessions = self._own.capacity.sessions / self._own.gateways
        figures = self._figures
        # Twice: a hot restart first tries in another process whether its successor could start.
        return ceil(2 * figures["process_mib"] + sessions * figures["connection_kib"] / 1024)


def _rolling(partition: int) -> Object:
    return {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}}


def _asked(path: str, period_s: int, failures: int) -> Object:
    return {
        "httpGet": {"scheme": "HTTPS", "path": path, "port": MONITOR},
        **pace(period_s, failures),
    }


def _port(name: str, found: int, inside: int, protocol: str = "TCP") -> Object:
    return {"name": name, "protocol": protocol, "port": found, "targetPort": inside}
