"""What one process of an IDC is told: its flags, the region file, the certificates' folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from imcore import auditfile
from imcore.attest import RegionKeys
from imcore.errors import BadInput
from imcore.pki import load_region_keys
from imcore.region.load import load_region
from imcore.region.model import Idc, Region
from imcore.region.rules import voters_of
from services.node.roles import Roles
from services.node.standby import CORES_MAX, audit_writer

ROUTES_MAX = 64  # of one IDC, as gateways


@dataclass(frozen=True, slots=True)
class NodeConfig:
    region: Region
    idc: Idc
    data: Path
    pki: Path
    keys: RegionKeys
    links: dict[str, str]  # peer -> HOST:PORT to dial it at
    faults: bool
    plain_clients: bool = False  # gateways without TLS, for benchmarks; on loopback only
    audit: Path | None = None  # the audit chain of this process; None: beside its data
    listen: str = ""  # the host to listen at; "": that of each endpoint
    roles: Roles = Roles.ALL
    instance: int = 1  # which gateway (of a front), ipconf, route or core of the IDC it is, from 1
    gateway_port: int = 0  # of a front: where it listens for what others find; 0: at that port
    monitor_port: int = 0  # of a front, ipconf or route: its probes and metrics; 0: none
    leaves: bool = False  # a front that is told to end sends its clients to others first
    standby: bool = False  # a core that waits while another one of the IDC serves
    route_port: int = 0  # of a route instance: where it listens for fronts
    advertise: str = ""  # of a route instance: HOST:PORT at which fronts find it; "": that port

    def listener(self, address: str) -> tuple[str, int]:
        """Where to listen for what others find at this endpoint, HOST:PORT."""
        host, port = split_address(address)
        return self.listen or host, port

    @property
    def advertised(self) -> str:
        """Where fronts find this route instance, HOST:PORT."""
        host = split_address(self.idc.endpoints.peer)[0]
        return self.advertise or f"{host}:{self.route_port}"

    @property
    def audit_file(self) -> Path:
        return self.audit or self.data / auditfile.FILE

    @property
    def audit_writer(self) -> str:
        """Of its audit chain: a core on a folder of its own has one of its own."""
        return audit_writer(self.idc.name, self.instance if self.standby else 1)

    def peers(self) -> list[str]:
        """Every other IDC, and the witness: whoever has a registry and a vote."""
        return [name for name in voters_of(self.region) if name != self.idc.name]

    def peer_idcs(self) -> list[str]:
        return [i.name for i in self.region.spec.idcs if i.name != self.idc.name]

    def address(self, peer: str) -> str:
        if peer in self.links:
            return self.links[peer]
        return self.region.peer(peer)


def load(
    region_file: Path,
    idc: str,
    data: Path,
    pki: Path,
    links: Path | None,
    faults: bool,
    plain_clients: bool = False,
    audit: Path | None = None,
    listen: str = "",
    roles: Roles = Roles.ALL,
    instance: int = 1,
    gateway_port: int = 0,
    monitor_port: int = 0,
    leaves: bool = False,
    standby: bool = False,
    route_port: int = 0,
    advertise: str = "",
) -> NodeConfig:
    """Raises BadInput."""
    region = load_region(region_file)
    try:
        own = region.idc(idc)
    except KeyError:
        names = ", ".join(i.name for i in region.spec.idcs)
        raise BadInput(f"--idc {idc}: expected one of {names} ({region_file})") from None
    front, alone = ",".join(Roles.FRONT.value), ",".join(Roles.IPCONF.value)
    if roles in (Roles.IPCONF, Roles.CORE_ALONE) and not own.ipconfs:
        raise BadInput(
            f"--roles {','.join(roles.value)}: expected `ipconfs` of 1 or more at {idc} "
            f"({region_file}), which says that ipconf runs apart"
        )
    cores = (Roles.CORE, Roles.CORE_ALONE)
    if standby and roles not in cores:
        sets = " or ".join(",".join(core.value) for core in cores)
        raise BadInput(f"--standby: expected only with --roles {sets}")
    counts = {Roles.FRONT: own.gateways, Roles.IPCONF: own.ipconfs, Roles.ROUTE: ROUTES_MAX}
    if not 1 <= instance <= (CORES_MAX if standby else counts.get(roles, 1)):
        raise BadInput(
            f"--instance {instance}: expected 1 to {own.gateways} (the gateways of {idc}) with "
            f"--roles {front}, 1 to {own.ipconfs} (its ipconfs) with --roles {alone}, 1 to "
            f"{ROUTES_MAX} with --roles route, 1 to {CORES_MAX} with --standby, else none"
        )
    if roles is not Roles.FRONT and (gateway_port or leaves):
        raise BadInput(f"--gateway-port, --leave: expected only with --roles {front}")
    if roles not in counts and monitor_port:
        raise BadInput(f"--monitor-port: expected only with --roles {front}, {alone} or route")
    if (roles is Roles.ROUTE) is not (0 < route_port < 1 << 16):
        raise BadInput("--route-port: expected a port with --roles route, and nowhere else")
    if advertise and roles is not Roles.ROUTE:
        raise BadInput("--advertise: expected only with --roles route")
    if advertise and not _is_address(advertise):
        raise BadInput(f"--advertise {advertise}: expected HOST:PORT")
    gateway = listen or split_address(own.endpoints.gateway)[0]
    if plain_clients and not _is_loopback(gateway):
        raise BadInput(
            f"--plain-clients: expected a gateway on a loopback address, got {gateway}: "
            "without TLS tokens and messages could be read on the way"
        )
    addresses: dict[str, str] = {}
    if links is not None:
        try:
            addresses = parse_links(links.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise BadInput(
                f'--links {links}: expected JSON {{"IDC": "HOST:PORT"}}: {error}'
            ) from None
    return NodeConfig(
        region, own, data, pki, load_region_keys(pki), addresses, faults, plain_clients, audit,
        listen, roles, instance, gateway_port, monitor_port, leaves, standby, route_port, advertise,
    )  # fmt: skip


def parse_links(data: bytes) -> dict[str, str]:
    """By peer, where it is dialled. Raises ValueError."""
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError("it is no mapping")
    for peer, address in found.items():
        if not isinstance(address, str) or not _is_address(address):
            raise ValueError(f"{peer}: expected HOST:PORT, got {address!r}")
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) < 1 << 16


def split_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)
