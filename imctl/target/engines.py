"""The engines that the local target runs itself, beside the IDC that uses them."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from imcore.errors import BadInput
from imcore.region.load import load_region
from imcore.region.model import Region
from imcore.region.rules import listeners
from imctl.engines.etcd import Server
from imctl.errors import Failed

ETCD = "etcd"
KNOWN = (ETCD,)
# Below the range from which kernels take the ports of outgoing connections.
PORTS = range(20_000, 32_000)
_HEAD = "# The region file of `imctl up`, with the engines that run beside the IDCs.\n"


def chosen(text: str) -> tuple[str, ...]:
    """``--engines etcd``: which ones to run here. Raises BadInput."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in KNOWN:
            raise BadInput(f"--engines: expected {', '.join(KNOWN)}, got {name!r}")
    return names


def unit(idc: str) -> str:
    """The name of the IDC's etcd."""
    return f"{idc}-{ETCD}"


def idc_of(region: Region, name: str) -> str | None:
    """Whose etcd this is."""
    return next((idc.name for idc in region.spec.idcs if unit(idc.name) == name), None)


def with_etcd(text: str, region: Region, pki: Path) -> str:
    """The region file's text, with an etcd of its own for each IDC: where the file says (its first
    endpoint), else at a free port."""
    document: dict[str, Any] = yaml.safe_load(text)
    names = {idc.name for idc in region.spec.idcs}
    taken = {port for _, _, port in listeners(region)}
    for row, idc in zip(document["spec"]["idcs"], region.spec.idcs, strict=True):
        if unit(idc.name) in names:
            raise BadInput(f"an IDC is named {unit(idc.name)}, as the etcd of {idc.name} would be")
        etcd = idc.engines.registry.etcd
        endpoint = etcd.endpoints[0] if etcd else f"127.0.0.1:{free_port(taken)}"
        taken.add(int(endpoint.rpartition(":")[2]))
        settings = {
            "endpoints": [endpoint],
            "ca_file": str(pki / "ca.pem"),
            "cert_file": str(pki / f"{idc.name}.pem"),
            "key_file": str(pki / f"{idc.name}.key"),
        }
        if etcd and etcd.prefix:
            settings["prefix"] = etcd.prefix
        row["engines"] = (row.get("engines") or {}) | {"registry": {"etcd": settings}}
    return _HEAD + yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def certificates(region: Region, engines: Sequence[str]) -> dict[str, list[str]]:
    """Name -> hosts of the certificates that the engines need."""
    if ETCD not in engines:
        return {}
    found = {}
    for idc in region.spec.idcs:
        etcd = idc.engines.registry.etcd
        assert etcd is not None  # with_etcd wrote it
        found[unit(idc.name)] = [etcd.endpoints[0].rpartition(":")[0]]
    return found


def etcd_server(region: Region, idc: str, folder: Path, pki: Path) -> Server:
    etcd = region.idc(idc).engines.registry.etcd
    assert etcd is not None
    return Server(idc, folder, etcd.endpoints[0], pki, unit(idc), idc)


def check_same(folder: Path, region: Region) -> None:
    """Registries that change their engine are all blank at once, and would never agree on
    anything again. Raises Failed."""
    try:
        earlier = load_region(folder / "region.yaml")
    except BadInput:
        return
    before = {idc.name: idc.engines.registry.etcd is not None for idc in earlier.spec.idcs}
    for idc in region.spec.idcs:
        now = idc.engines.registry.etcd is not None
        if (folder / idc.name / "data").exists() and before.get(idc.name, now) != now:
            engine = "etcd" if before[idc.name] else "the embedded engine"
            raise Failed(
                f"the registry of {idc.name} in {folder} is on {engine}; start it so again, "
                "choose another folder with --data, or remove this one"
            )


def free_port(taken: set[int]) -> int:
    for port in random.sample(PORTS, len(PORTS)):
        if port not in taken:
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise Failed(f"there is no free port from {PORTS.start} to {PORTS.stop}")
