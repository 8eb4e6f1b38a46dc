"""Which objects an IDC's engines are on a Kubernetes cluster with Strimzi and TiDB Operator v2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imcore.errors import BadInput
from imcore.region.model import Region
from imctl.engines import mm2, mm2_config, strimzi, strimzi_kafka, tidb_operator
from imctl.engines.machines import Layout

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a region file does not say. ``secret``: with what MirrorMaker shows to brokers.
    ``remote``: see strimzi_kafka."""

    layout: Layout
    secret: str
    remote: str
    tikv_version: str
    tikv_tls: bool


def objects(region: Region, name: str, wishes: Wishes) -> list[Object]:
    """Of log, mirror and KV, as far as the region file names their engines. Raises BadInput."""
    try:
        idc = region.idc(name)
    except KeyError:
        known = ", ".join(idc.name for idc in region.spec.idcs)
        raise BadInput(f"--idc: expected one of {known}, got {name!r}") from None
    engines, found = idc.engines, []
    if engines.log.kafka is not None:
        layout, remote = wishes.layout, wishes.remote
        found += strimzi_kafka.objects(region, idc, engines.log.kafka, layout, remote)
    if engines.mirror.mirrormaker2 is not None:
        flows = mm2_config.flows_into(region, name)
        shown = mm2_config.credentials_of(region, name, mm2.secrets_file(mm2.FOLDER))
        found.append(strimzi.strimzi(flows, shown, wishes.secret))
    if engines.kv.tikv is not None:
        layout, version = wishes.layout, wishes.tikv_version
        found += tidb_operator.objects(name, layout, version, wishes.tikv_tls)
    if not found:
        raise BadInput(
            f"{name}: expected `log: {{kafka: ...}}` or `kv: {{tikv: ...}}` under its engines, got "
            "none that Strimzi or TiDB Operator runs"
        )
    return found
