"""The Kubernetes objects of one IDC or witness, as a function of its spec and the region. Pure.

One process has all roles of an IDC, on a volume of its own: a StatefulSet with one pod, whose name
and volume stay the same. `OnDelete`: all IDCs of a region see a change of it at once, and none may
restart for it before the others can carry its clients.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from ipaddress import ip_address
from math import ceil
from typing import Any, NamedTuple

import yaml

from imcore.pki import REGION_KEYS, dns_name
from imcore.region.model import Region
from imcore.region.rules import gateway_ports, ipconf_addresses, split
from imctl.api.beside import BesideSpec
from imctl.api.kinds import API_VERSION, GROUP
from imctl.api.model import Certificates, IdcSpec, Resources, Storage, Toleration, WitnessSpec
from imctl.reconcile.observed import Object, Owner, Port
from services.node.roles import Roles

MANAGER = "imctl-operator"
MANAGED_BY = "app.kubernetes.io/managed-by"  # of all that it makes: MANAGER
TEMPLATE = f"{GROUP}/template"
REGION_FILE = f"{GROUP}/region-file"
REGION_LABEL = f"{GROUP}/region"
DOWN_UNTIL = f"{GROUP}/down-until"  # of an IDC object: a drill keeps it down, until then at most
CORE_OF = f"{GROUP}/core-of"  # of pods: whose core, of several of which one serves
TAKEN_DOWN = f"{GROUP}/taken-down"  # of a StatefulSet that a drill keeps down: its pods before
USER = 65532  # of the image
CERT_MANAGER = "cert-manager.io/v1"
ETC, VAR = "/etc/imctl", "/var/lib/imctl"
CA, CERTIFICATE, KEY = "ca.crt", "tls.crt", "tls.key"
FOR_PEERS = ("peer", "admin")  # ports, by name
GRACE_S = 30  # a node writes its checkpoint and says farewell; it takes a second
POD_SECURITY: Object = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
ARGUMENTS = (
    "--region", f"{ETC}/region/region.yaml", "--pki", f"{ETC}/pki",
    "--data", f"{VAR}/data", "--audit", f"{VAR}/audit.jsonl",
)  # fmt: skip
MOUNTS: list[Object] = [
    {"name": "data", "mountPath": VAR},
    {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - its own
    {"name": "region", "mountPath": f"{ETC}/region", "readOnly": True},
    {"name": "pki", "mountPath": f"{ETC}/pki", "readOnly": True},
]
CONTAINER_SECURITY: Object = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


class Part(NamedTuple):
    """What an IDC and a witness have each in its own way."""

    name: str  # in the region file, and in its certificate
    component: str
    module: str
    arguments: tuple[str, ...]
    peer: int  # port
    clients: Mapping[str, int]  # ports by name; empty for a witness
    hosts: tuple[str, ...]  # of its endpoints
    memory_mib: int
    metrics: int = 0  # port of HTTPS for probes and Prometheus; 0: none
    admin: int = 0  # port of the admin API; 0: none
    quic: bool = False  # its gateways listen by UDP too
    shared: bool = False  # its core is one of several, of which one serves

    def ports(self) -> dict[str, int]:
        """All that listens by TCP, by name."""
        some = {"metrics": self.metrics, "admin": self.admin}
        found = {**self.clients, "peer": self.peer}
        return found | {name: port for name, port in some.items() if port}

    def udp_ports(self) -> dict[str, int]:
        """Of gateways, for QUIC: the numbers that they have by TCP."""
        gateways = {
            name: port for name, port in self.clients.items() if name.startswith("gateway-")
        }
        return {f"{name}-udp": port for name, port in gateways.items() if self.quic}


class Now(NamedTuple):
    """What of an IDC's objects depends on how it is. ``down``: no pod is wanted now. ``carries``:
    it is known to have clients. ``listens``: where the pod does that there is; it is reached there
    until it is replaced. ``shared``: its pod has a core of several, or the next one will.
    ``relieved``: another core stands by. ``lives``: one serves, or has until a moment ago."""

    down: bool = False
    carries: bool = False
    listens: Sequence[Port] = ()
    shared: bool = False
    relieved: bool = False
    lives: bool = False


def part_of(spec: IdcSpec | WitnessSpec, region: Region, figures: Mapping[str, float]) -> Part:
    """Raises KeyError with the name that the region has not."""
    base = ceil(figures["process_mib"])
    if isinstance(spec, WitnessSpec):
        if region.spec.witness is None:
            raise KeyError("witness")
        host, port = split(region.spec.witness.peer)
        name = region.spec.witness.name
        return Part(name, "witness", "services.witness", (), port, {}, (host,), 2 * base)
    idc = region.idc(spec.idc)
    clients: dict[str, int] = {}
    arguments = ["--idc", idc.name]
    if spec.gateways == "apart":
        arguments += ["--roles", ",".join(Roles.CORE.value)]
    else:
        ports = [port for _, port in gateway_ports(idc)]
        clients = {f"gateway-{number}": port for number, port in enumerate(ports, 1)}
    ends = idc.endpoints
    for number, address in enumerate(ipconf_addresses(idc), 1):
        clients["ipconf" if number == 1 else f"ipconf-{number}"] = split(address)[1]
    if ends.media is not None:
        clients["media"] = split(ends.media)[1]
    hosts = dict.fromkeys(split(end)[0] for end in (ends.gateway, ends.ipconf, ends.peer))
    # Where gateways are apart, the other roles keep a row of each session too.
    memory = base + figures["im_mib"] + idc.capacity.sessions * figures["connection_kib"] / 1024
    return Part(
        idc.name, "idc", "services.node", tuple(arguments), split(ends.peer)[1], clients,
        tuple(hosts), ceil(memory), split(ends.metrics)[1] if ends.metrics else 0,
        split(ends.admin)[1] if ends.admin else 0,
        region.spec.client.quic and spec.gateways != "apart", spec.cores == "shared",
    )  # fmt: skip


def objects(
    owner: Owner,
    spec: IdcSpec | WitnessSpec,
    region: Region,
    figures: Mapping[str, float],
    now: Now | None = None,
) -> list[Object]:
    """In the order of applying them: what a pod needs stands before the StatefulSet. ``now``: None:
    there is no pod yet. Raises KeyError as ``part_of``."""
    part = part_of(spec, region, figures)
    return _Maker(owner, spec, region, part, now or Now(shared=part.shared)).all()


def region_text(region: Region) -> str:
    """The region file; the same bytes for the same region."""
    return _yaml(region.model_dump_json(exclude_defaults=True))


@lru_cache(64)
def _yaml(text: str) -> str:
    """Of JSON. To write it takes 15 ms, and each object of a region asks for it at each look."""
    return yaml.safe_dump(json.loads(text), sort_keys=False)


def hash_of(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


class _Maker:
    def __init__(
        self,
        owner: Owner,
        spec: IdcSpec | WitnessSpec,
        region: Region,
        part: Part,
        now: Now,
    ) -> None:
        self._owner, self._spec, self._part, self._now = owner, spec, part, now
        self._text = region_text(region)
        self._hash = hash_of(self._text)
        self._base = f"{owner.name}-{part.component}"
        self._match = {
            "app.kubernetes.io/name": "imctl",
            "app.kubernetes.io/component": part.component,
            "app.kubernetes.io/instance": owner.name,
        }
        self._region_label = {REGION_LABEL: region.metadata.name}

    @property
    def _served(self) -> dict[str, str]:
        """Labels of the pods by which the IDC is reached, and evicted."""
        return {CORE_OF: self._owner.name} if self._now.shared else self._match

    def all(self) -> list[Object]:
        made = [
            self._object("v1", "ServiceAccount", self._base, automountServiceAccountToken=False),
            self._config_map(),
            self._network_policy(),
            self._peer_service(),
        ]
        if self._part.clients:
            made += [self._client_service(), self._budget()]
        if self._spec.certificates.issuer:
            made.append(self._certificate())
        workload = self._stateful_set()
        return [*made, taken_down(workload) if self._now.down else workload]

    def _object(self, api: str, kind: str, name: str, **body: Any) -> Object:
        return owned(self._owner, {**self._match, **self._region_label}, api, kind, name, body)

    def _config_map(self) -> Object:
        """One for each region file: what a pod was given does not change under it."""
        name = f"{self._base}-region-{self._hash}"
        data = {"region.yaml": self._text}
        return self._object("v1", "ConfigMap", name, immutable=True, data=data)

    def _network_policy(self) -> Object:
        """Only the listeners can be reached. Who may call a peer is judged by certificates: other
        IDCs come from addresses that nobody here knows."""
        ports = [{"protocol": "TCP", "port": port} for port in self._part.ports().values()]
        ports += [{"protocol": "UDP", "port": port} for port in self._part.udp_ports().values()]
        ports += [{"protocol": each, "port": port} for _, port, each in self._former()]
        spec = {
            "podSelector": {"matchLabels": self._match},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": ports}],
        }
        return self._object("networking.k8s.io/v1", "NetworkPolicy", self._base, spec=spec)

    def _former(self) -> list[Port]:
        """Where the pod listens that there is, and the next one will not."""
        wanted = {(port, "TCP") for port in self._part.ports().values()}
        wanted |= {(port, "UDP") for port in self._part.udp_ports().values()}
        return [each for each in self._now.listens if each[1:] not in wanted]

    def _former_of(self, wanted: Callable[[str], bool]) -> list[Object]:
        """For a Service: of those with such names."""
        return [
            self._port(f"{name}-before", number, protocol)
            for name, number, protocol in self._former()
            if wanted(name)
        ]

    def _peer_service(self) -> Object:
        """Also before it is ready: others need its registry for their majority. Where cores are
        shared one that is not ready stands by, and ready means that it listens there."""
        spec = {
            "type": self._spec.service,
            "publishNotReadyAddresses": not self._now.shared,
            "selector": self._served,
            "ports": [
                self._port(name, port)
                for name, port in (("peer", self._part.peer), ("admin", self._part.admin))
                if port
            ]
            + self._former_of(lambda name: name in FOR_PEERS),
        }
        return self._object("v1", "Service", f"{self._base}-peer", spec=spec)

    def _client_service(self) -> Object:
        spec: Object = {
            "type": self._spec.service,
            "selector": self._served,
            "ports": [
                *(self._port(name, number) for name, number in self._part.clients.items()),
                *(self._port(name, port, "UDP") for name, port in self._part.udp_ports().items()),
                *self._former_of(lambda name: name not in (*FOR_PEERS, "metrics")),
            ],
        }
        if self._spec.service != "ClusterIP":
            # ipconf places clients by their address, which a second hop would hide.
            spec["externalTrafficPolicy"] = "Local"
        return self._object("v1", "Service", f"{self._base}-clients", spec=spec)

    def _budget(self) -> Object:
        """A node is not emptied of an IDC that has clients; after its drain it is. A pod that does
        not serve anyway is never kept. Of several cores the one that serves is let go while another
        stands by, and one at a time: cores that stand by are not ready, so they would go for
        nothing (AlwaysAllow), also beside the one that serves, and while one takes over. By
        IfHealthyBudget each takes the one eviction that there is while one serves; while none does
        there is none."""
        carries, unready = self._now.carries, "AlwaysAllow"
        if self._now.shared:  # the others are not ready, so a number of those that are away is none
            room = {"minAvailable": 1 if carries and not self._now.relieved else 0}
            if carries and self._now.lives:
                unready = "IfHealthyBudget"
        else:
            room = {"maxUnavailable": 0 if carries else 1}
        spec = {
            "selector": {"matchLabels": self._served},
            **room,
            "unhealthyPodEvictionPolicy": unready,
        }
        return self._object("policy/v1", "PodDisruptionBudget", self._base, spec=spec)

    def _port(self, name: str, number: int, protocol: str = "TCP") -> Object:
        port: Object = {"name": name, "protocol": protocol, "port": number, "targetPort": number}
        if self._spec.service == "NodePort":
            port["nodePort"] = number  # others dial the endpoint's own port, whoever listens there
        return port

    def _certificate(self) -> Object:
        issuer = self._spec.certificates.issuer
        assert issuer is not None
        own = dns_name(self._part.name)
        spec: Object = {
            "secretName": self._secret(),
            "commonName": own,
            "dnsNames": [own, *(host for host in self._part.hosts if not _is_ip(host))],
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
            "usages": ["digital signature", "server auth", "client auth"],
            "issuerRef": {"name": issuer.name, "kind": issuer.kind, "group": "cert-manager.io"},
        }
        if addresses := [host for host in self._part.hosts if _is_ip(host)]:
            spec["ipAddresses"] = addresses
        return self._object(CERT_MANAGER, "Certificate", self._base, spec=spec)

    def _secret(self) -> str:
        return secret_of(self._spec.certificates, self._base)

    def _stateful_set(self) -> Object:
        pod = self._pod()
        annotations = {TEMPLATE: hash_of(pod), REGION_FILE: self._hash}
        labels = {**self._match, **self._region_label}
        if self._part.shared:
            labels[CORE_OF] = self._owner.name
        metadata = {"labels": labels, "annotations": annotations}
        spec = {
            "serviceName": f"{self._base}-peer",
            "replicas": 1,
            "selector": {"matchLabels": self._match},
            "updateStrategy": {"type": "OnDelete"},
            **kept_volume(self._spec.storage),
            "template": {"metadata": metadata, "spec": pod},
        }
        return self._object("apps/v1", "StatefulSet", self._base, spec=spec)

    def _pod(self) -> Object:
        pod: Object = {
            "serviceAccountName": self._base,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": self._spec.termination_grace_s or GRACE_S,
            "securityContext": deepcopy(POD_SECURITY),
            "affinity": self._apart(),
            "containers": [self._container()],
            "volumes": self._volumes(),
        }
        if self._takes_drills():
            # Then its process is not the first of its namespace, which no signal from inside ends.
            pod["shareProcessNamespace"] = True
        pod |= placed(self._spec)
        if self._spec.image_pull_secret:
            pod["imagePullSecrets"] = [{"name": self._spec.image_pull_secret}]
        return pod

    def _takes_drills(self) -> bool:
        return isinstance(self._spec, IdcSpec) and bool(self._spec.drills_from)

    def _apart(self) -> Object:
        """From the other parts of the region, where several share a cluster."""
        term = {
            "labelSelector": {"matchLabels": self._region_label},
            "namespaceSelector": {},
            "topologyKey": "kubernetes.io/hostname",
        }
        wanted = [{"weight": 100, "podAffinityTerm": term}]
        return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": wanted}}

    def _container(self) -> Object:
        part = self._part
        more = ["--standby", "--instance", "1"] if part.shared else []
        if self._takes_drills():
            # Cuts of its links, and else what the Admin service knows; for an admin's certificate.
            more += ["--faults"]
        mounts = secret_mounts(self._spec.secrets)
        return container(part, part.component, self._spec.image, self._spec.resources, more, mounts)

    def _volumes(self) -> list[Object]:
        return [
            {"name": "tmp", "emptyDir": {}},
            {"name": "region", "configMap": {"name": f"{self._base}-region-{self._hash}"}},
            pki_volume(self._part.name, self._spec.certificates, self._base),
            *secret_volumes(self._spec.secrets),
        ]


def container(
    part: Part,
    name: str,
    image: str,
    resources: Resources,
    more: Sequence[str],
    mounts: Sequence[Object],
) -> Object:
    """With the process of an IDC or a witness. ``more``: arguments, beside the part's own."""
    # An event loop has one core at most; a witness nearly none.
    cpu = "1" if part.clients else "100m"
    return {
        "name": name,
        "image": image,
        "command": ["python3", "-m", part.module],
        "args": [*ARGUMENTS, *part.arguments, *more, "--listen", "0.0.0.0"],  # noqa: S104 - in a pod
        "ports": [
            *({"name": name, "containerPort": port} for name, port in part.ports().items()),
            *(
                {"name": name, "containerPort": port, "protocol": "UDP"}
                for name, port in part.udp_ports().items()
            ),
        ],
        "resources": room(resources, cpu, part.memory_mib),
        "securityContext": deepcopy(CONTAINER_SECURITY),
        **_lives(part),
        "readinessProbe": _serves(part),
        "volumeMounts": [*deepcopy(MOUNTS), *mounts],
    }


def secret_mounts(names: Sequence[str]) -> list[Object]:
    """Where a process finds what it shows to engines."""
    return [
        {"name": f"secret-{number}", "mountPath": f"{ETC}/secrets/{name}", "readOnly": True}
        for number, name in enumerate(names)
    ]


def secret_volumes(names: Sequence[str]) -> list[Object]:
    return [
        {"name": f"secret-{number}", "secret": {"secretName": each, "defaultMode": 0o440}}
        for number, each in enumerate(names)
    ]


def kept_volume(storage: Storage) -> Object:
    """Of a StatefulSet: a volume for each pod, which outlives it and the StatefulSet."""
    claim: Object = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": storage.size}},
    }
    if storage.class_name:
        claim["storageClassName"] = storage.class_name
    return {
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim}],
    }


def owned(
    owner: Owner, labels: Mapping[str, str], api: str, kind: str, name: str, body: Object
) -> Object:
    """An object that goes with its owner."""
    reference = {
        "apiVersion": API_VERSION,
        "kind": owner.kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": {**labels, MANAGED_BY: MANAGER},
            "ownerReferences": [reference],
        },
        **body,
    }


def taken_down(workload: Object) -> Object:
    """The StatefulSet or Deployment whose pods a drill keeps away."""
    marks = {TAKEN_DOWN: str(workload["spec"]["replicas"])}
    metadata = {**workload["metadata"], "annotations": marks}
    return {**workload, "metadata": metadata, "spec": {**workload["spec"], "replicas": 0}}


def let_up(workload: Object | None) -> Object | None:
    """What is to be applied, beside what it is, for its pods to come back; None: no drill keeps
    them away. What somebody else has scaled to nothing stays so."""
    metadata = (workload or {}).get("metadata", {})
    taken = metadata.get("annotations", {}).get(TAKEN_DOWN)
    if workload is None or not taken or workload["spec"]["replicas"] != 0:
        return None
    return _scaled(workload, int(taken))


def without_pods(workload: Object) -> Object | None:
    """What is to be applied, beside what it is, for it to have none; None: it has none."""
    return _scaled(workload, 0) if workload and workload["spec"]["replicas"] != 0 else None


def _scaled(workload: Object, replicas: int) -> Object:
    mine = {name: workload["metadata"][name] for name in ("name", "namespace", "uid")}
    return {
        "apiVersion": "apps/v1", "kind": workload["kind"],
        "metadata": mine | {"annotations": {TAKEN_DOWN: ""}},
        "spec": {"replicas": replicas},
    }  # fmt: skip


def room(asked: Resources, cpu: str, memory_mib: int) -> Object:
    """What a container gets: what was asked for, else this. Memory is the limit too."""
    memory = asked.memory or f"{memory_mib}Mi"
    limits = {"memory": memory} | ({"cpu": asked.cpu_limit} if asked.cpu_limit else {})
    # As Kubernetes does: who says only a limit asks for all of it.
    cpu = asked.cpu or asked.cpu_limit or cpu
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": limits}


def placed(spec: IdcSpec | WitnessSpec | BesideSpec) -> Object:
    """What of a pod says on which nodes it may run, and before whom."""
    found: Object = {}
    if spec.node_selector:
        found["nodeSelector"] = dict(spec.node_selector)
    if spec.tolerations:
        found["tolerations"] = [_toleration(each) for each in spec.tolerations]
    if spec.priority_class:
        found["priorityClassName"] = spec.priority_class
    return found


def _toleration(one: Toleration) -> Object:
    fields = {
        "key": one.key, "operator": one.operator, "value": one.value or None,
        "effect": one.effect, "tolerationSeconds": one.seconds,
    }  # fmt: skip
    return {name: value for name, value in fields.items() if value is not None}


def secret_of(certificates: Certificates, base: str) -> str:
    """The name of the Secret with the process's certificate."""
    return certificates.secret or f"{base}-certificate"


def pki_volume(name: str, certificates: Certificates, base: str) -> Object:
    """The process's pki folder. ``name``: of the process in its certificate."""
    pair = [(CA, "ca.pem"), (CERTIFICATE, f"{name}.pem"), (KEY, f"{name}.key")]
    keys = [(REGION_KEYS, REGION_KEYS)]
    files = [
        {"secret": {"name": secret_of(certificates, base), "items": _items(pair)}},
        {"secret": {"name": certificates.region_keys, "items": _items(keys)}},
    ]
    return {"name": "pki", "projected": {"defaultMode": 0o440, "sources": files}}


def _lives(part: Part) -> Object:
    """Liveness: an answer of the process's loop, where it gives one: a connection is taken by the
    kernel. What it missed while it was away it may fetch from others first."""
    if not part.metrics:
        # One that stands by listens nowhere else, and one that hangs loses its lease.
        peer = part.peer
        probes = {"startupProbe": _probe(peer, 2, 150), "livenessProbe": _probe(peer, 10, 6)}
        return {} if part.shared else probes
    start = asked("/livez", part.metrics, 2, 150) if part.shared else _probe(part.peer, 2, 150)
    return {"startupProbe": start, "livenessProbe": asked("/livez", part.metrics, 10, 6)}


def _serves(part: Part) -> Object:
    """Readiness: what the process itself says, where it is asked: that a gateway of it is in
    discovery. Where gateways are apart that would take ipconf and files away with the last of
    them. There, and where nobody is asked: what listens last and first closes. Of several cores the
    one that serves is reached by others already while it starts: they may need its registry."""
    if part.shared:
        return _probe(part.peer, 2, 2)
    if part.metrics and "gateway-1" in part.clients:
        return asked("/readyz", part.metrics, 2, 3)
    return _probe(part.clients.get("ipconf", part.peer), 2, 2)


def asked(path: str, port: int, period_s: int, failures: int) -> Object:
    """A probe: the process's loop answers."""
    return {
        "httpGet": {"scheme": "HTTPS", "path": path, "port": port},
        **_pace(period_s, failures),
    }


def _probe(port: int, period_s: int, failures: int) -> Object:
    return {"tcpSocket": {"port": port}, **_pace(period_s, failures)}


def _pace(period_s: int, failures: int) -> Object:
    return {
        "periodSeconds": period_s,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


def _items(pairs: list[tuple[str, str]]) -> list[Object]:
    return [{"key": key, "path": path} for key, path in pairs]


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
