"""What other IDCs may do in an IDC's Kafka: their MirrorMakers read its logs, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from aiokafka.protocol.admin import CreateAclsRequest

from services.engines.kafka.cluster import Cluster
from services.engines.kafka.heartbeats import HEARTBEATS

_TOPIC = 2
LITERAL, PREFIXED = 3, 4
READ, DESCRIBE_CONFIGS = 3, 10
_ALLOW = 3


class Grant(NamedTuple):
    """On topics; ``pattern``: of that name, or all whose names begin so."""

    topic: str
    pattern: int
    operation: int


def of_mirrors(prefix: str) -> list[Grant]:
    """Reading includes describing. Its settings are read when a log's copy is made."""
    return [
        Grant(topic, pattern, operation)
        for topic, pattern in ((f"{prefix}.log.", PREFIXED), (HEARTBEATS, LITERAL))
        for operation in (READ, DESCRIBE_CONFIGS)
    ]


async def allow(cluster: Cluster, principal: str, grants: Iterable[Grant]) -> None:
    """To grant again what is granted changes nothing. Raises Unavailable."""
    for topic, pattern, operation in grants:
        request = CreateAclsRequest(_TOPIC, topic, pattern, principal, "*", operation, _ALLOW)
        reply = await cluster.ask(request, controller=True)
        for code, *_ in reply.creation_responses:
            cluster.check(code, f"let {principal} read {topic}")
