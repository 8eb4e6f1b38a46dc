"""Which engines the local target runs itself, and the region file that says where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from imcore.errors import BadInput
from imcore.region.load import load_region
from imcore.region.model import Engines, Idc, Region
from imctl.engines.s3 import REGION
from imctl.errors import Failed
from imctl.target.places import Places

ETCD, KAFKA, TIKV, S3 = KNOWN = ("etcd", "kafka", "tikv", "s3")
# What must be installed for each.
PROGRAMS = {ETCD: ["etcd"], KAFKA: ["kafka"], TIKV: ["pd", "tikv-mock"], S3: ["versitygw"]}
FILES = "file store"
BUCKET = "im-files"
_HEAD = "# The region file of `imctl up`, with the engines that run beside the IDCs.\n"


def chosen(text: str) -> tuple[str, ...]:
    """``--engines kafka,etcd``: which ones to run here. Raises BadInput."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in KNOWN:
            raise BadInput(f"--engines: expected some of {', '.join(KNOWN)}, got {name!r}")
    return names


def programs(engines: Sequence[str]) -> list[str]:
    return [program for engine in engines for program in PROGRAMS[engine]]


# ------------------------------------------------------------------- names of units, and places


def unit(idc: str, kind: str) -> str:
    """The name of an IDC's engine as a unit of the deployment."""
    return f"{idc}-{kind}"


def controller(idc: str) -> str:
    """The place of a broker's controller listener."""
    return f"{idc}-kafka controller"


def listener(idc: str, remote: str) -> str:
    """The place of the broker's listener for the MirrorMaker of another IDC."""
    return f"{idc}-kafka for {remote}"


def proxied(idc: str, remote: str) -> str:
    """The place where the link proxy takes the calls of ``idc``'s MirrorMaker to ``remote``."""
    return f"{idc}-mm2 to {remote}"


def pairs(region: Region) -> Iterator[tuple[str, str]]:
    """(whose MirrorMaker, whose broker) of all that cross a link."""
    for idc in region.spec.idcs:
        if idc.engines.mirror.mirrormaker2:
            yield from ((idc.name, one.name) for one in region.spec.idcs if one.name != idc.name)


def routes(region: Region, places: Places) -> list[dict[str, str]]:
    """For the link proxy."""
    return [
        {
            "source": source,
            "target": target,
            "listen": places.at(proxied(source, target)),
            "address": places.at(listener(target, source)),
        }
        for source, target in pairs(region)
    ]


# ----------------------------------------------------------------------------- region file


def with_engines(
    text: str, region: Region, pki: Path, engines: Sequence[str], places: Places
) -> str:
    """The region file's text, with engines of its own for each IDC: where the file says (the first
    address), else at a free port."""
    document: dict[str, Any] = yaml.safe_load(text)
    write = {ETCD: _etcd, KAFKA: _kafka, TIKV: _tikv, S3: _s3}
    for row, idc in zip(document["spec"]["idcs"], region.spec.idcs, strict=True):
        found = dict(row.get("engines") or {})
        for engine in engines:
            write[engine](found, region, idc, pki, places)
        row["engines"] = found
    return as_text(document)


def as_text(document: Mapping[str, Any]) -> str:
    return _HEAD + yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def with_kv(text: str, kv: Mapping[str, Any]) -> str:
    """The region file's text, with these IDCs' ``engines.kv``."""
    document: dict[str, Any] = yaml.safe_load(text)
    for row in document["spec"]["idcs"]:
        if row["name"] in kv:
            row["engines"] = {**(row.get("engines") or {}), "kv": kv[row["name"]]}
    return as_text(document)


def tikv_of(idc: Idc, places: Places) -> dict[str, Any]:
    """Where its own is, or will be."""
    tikv = idc.engines.kv.tikv
    pd = tikv.pd if tikv else [places.at(unit(idc.name, "pd"))]
    return {"pd": pd, **({"prefix": tikv.prefix} if tikv and tikv.prefix else {})}


def _etcd(found: dict[str, Any], region: Region, idc: Idc, pki: Path, places: Places) -> None:
    etcd = idc.engines.registry.etcd
    endpoint = etcd.endpoints[0] if etcd else places.at(unit(idc.name, ETCD))
    prefix = {"prefix": etcd.prefix} if etcd and etcd.prefix else {}
    found["registry"] = {"etcd": {"endpoints": [endpoint], **_credentials(pki, idc), **prefix}}


def _kafka(found: dict[str, Any], region: Region, idc: Idc, pki: Path, places: Places) -> None:
    """One broker: what it acks is on its disk, because nobody else has it."""
    kafka = idc.engines.log.kafka
    broker = kafka.brokers[0] if kafka else places.at(unit(idc.name, KAFKA))
    alone = {"replication_factor": 1, "min_insync_replicas": 1, "durability": "flush"}
    said = kafka.model_fields_set if kafka else ()
    prefix = {"topic_prefix": kafka.topic_prefix} if kafka and "topic_prefix" in said else {}
    found["log"] = {"kafka": {"brokers": [broker], **_credentials(pki, idc), **prefix, **alone}}
    others = [other.name for other in region.spec.idcs if other.name != idc.name]
    if found.get("mirror") != "embedded" and others:
        remote = {other: [places.at(proxied(idc.name, other))] for other in others}
        found["mirror"] = {"mirrormaker2": {"remote_brokers": remote}}


def _tikv(found: dict[str, Any], region: Region, idc: Idc, pki: Path, places: Places) -> None:
    tikv = tikv_of(idc, places)
    found["kv"] = {"tikv": {**tikv, "pd": tikv["pd"][:1]}}


def _s3(found: dict[str, Any], region: Region, idc: Idc, pki: Path, places: Places) -> None:
    """With a user of its own, on TLS, whatever the file says of one that runs already."""
    s3 = idc.engines.blobs.s3
    address = s3.endpoint.partition("://")[2] if s3 else ""
    if ":" not in address:
        address = places.at(unit(idc.name, S3))
    prefix = {"prefix": s3.prefix} if s3 and s3.prefix else {}
    found["blobs"] = {
        "s3": {
            "endpoint": f"https://{address}",
            "bucket": s3.bucket if s3 else BUCKET,
            "region": s3.region if s3 else REGION,
            "credentials_file": str(pki / f"{unit(idc.name, S3)}.credentials"),
            "ca_file": str(pki / "ca.pem"),
            **prefix,
        }
    }


def _credentials(pki: Path, idc: Idc) -> dict[str, str]:
    return {
        "ca_file": str(pki / "ca.pem"),
        "cert_file": str(pki / f"{idc.name}.pem"),
        "key_file": str(pki / f"{idc.name}.key"),
    }


def certificates(region: Region, engines: Sequence[str]) -> dict[str, list[str]]:
    """Name -> hosts of the certificates that the engines need. The region is the copy."""
    found = {}
    for idc in region.spec.idcs:
        etcd, kafka = idc.engines.registry.etcd, idc.engines.log.kafka
        s3 = idc.engines.blobs.s3
        if ETCD in engines and etcd:
            found[unit(idc.name, ETCD)] = [_host(etcd.endpoints[0])]
        if KAFKA in engines and kafka:
            found[unit(idc.name, KAFKA)] = sorted({_host(kafka.brokers[0]), "127.0.0.1"})
        if S3 in engines and s3:
            found[unit(idc.name, S3)] = [_host(s3.endpoint.removeprefix("https://"))]
    return found


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def check_same(folder: Path, region: Region) -> None:
    """Data stay with the engine that wrote them: an IDC whose log or KV is suddenly another one
    has lost them, and registries that all change their engine are blank at once and would never
    agree on anything again. Mirrors may change: the log tells what they brought. Raises Failed."""
    try:
        earlier = load_region(folder / "region.yaml")
    except BadInput:
        return
    before = {idc.name: _behind(idc.engines) for idc in earlier.spec.idcs}
    if earlier.spec.media is None:  # no files are there that could be lost
        for behind in before.values():
            del behind[FILES]
    for idc in region.spec.idcs:
        if not (folder / idc.name / "data").exists() or idc.name not in before:
            continue
        for port, engine in _behind(idc.engines).items():
            if before[idc.name].get(port, engine) != engine:
                raise Failed(
                    f"the {port} of {idc.name} in {folder} is on {before[idc.name][port]}; start "
                    "it so again, choose another folder with --data, or remove this one"
                )


def _behind(engines: Engines) -> dict[str, str]:
    """Port -> engine, in words."""
    embedded = "the embedded engine"
    return {
        "registry": "etcd" if engines.registry.etcd else embedded,
        "log": "Kafka" if engines.log.kafka else embedded,
        "KV": "TiKV" if engines.kv.tikv else embedded,
        FILES: "S3" if engines.blobs.s3 else embedded,
    }
