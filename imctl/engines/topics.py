"""The topics of an IDC's Kafka against what the region file wants of them: read, never changed.

An IDC makes the topics that are missing when it starts, and says of the others how they differ;
this says both beforehand, and from anywhere that reaches the brokers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from imcore.errors import BadInput, Unavailable
from imcore.region.model import Region
from imctl.errors import Failed
from services.engines.kafka import admin
from services.engines.kafka.admin import Difference, Topic
from services.engines.kafka.cluster import Cluster
from services.node.external import kafka_settings

LOOK_S = 30.0


class Plan(NamedTuple):
    """Of one IDC. ``found``: those that are there."""

    idc: str
    wanted: list[Topic]
    found: dict[str, Topic]

    @property
    def missing(self) -> list[str]:
        return [topic.name for topic in self.wanted if topic.name not in self.found]

    @property
    def differences(self) -> list[Difference]:
        return admin.plan(self.wanted, self.found)

    @property
    def differs(self) -> bool:
        return bool(self.missing or self.differences)


def plans(region: Region, names: Sequence[str]) -> list[Plan]:
    """Of these IDCs; none: of all whose log is on Kafka. Raises BadInput, Failed when a Kafka
    cannot be looked at."""
    on_kafka = [idc.name for idc in region.spec.idcs if idc.engines.log.kafka is not None]
    for name in names:
        if name not in on_kafka:
            where = ", ".join(on_kafka) or "none"
            raise BadInput(f"--idc: expected an IDC whose log is on Kafka ({where}), got {name!r}")
    if not on_kafka:
        raise BadInput("engines.log: expected an IDC whose log is on Kafka; in this file none is")
    return asyncio.run(_plans(region, names or on_kafka))


async def _plans(region: Region, names: Sequence[str]) -> list[Plan]:
    return [await _plan(region, name) for name in names]


async def _plan(region: Region, name: str) -> Plan:
    engines = region.idc(name).engines
    assert engines.log.kafka is not None
    settings = kafka_settings(engines.log.kafka)
    others = [idc.name for idc in region.spec.idcs if idc.name != name]
    cluster = Cluster(settings, name)
    try:
        async with asyncio.timeout(LOOK_S):
            names = await cluster.look(None)
            copied = others if engines.mirror.mirrormaker2 is not None else []
            wanted = admin.wanted(names, settings, region.spec.partitions, copied)
            found = await admin.describe(cluster, [topic.name for topic in wanted])
            return Plan(name, wanted, found)
    except Unavailable as error:
        raise Failed(str(error)) from error
    except TimeoutError:
        raise Failed(f"{cluster} did not answer within {LOOK_S:g} s") from None
    finally:
        await cluster.close()
