"""What another IDC's MirrorMaker may do in this IDC's cluster: read the own logs, nothing else."""

from __future__ import annotations

from aiokafka.protocol.admin import CreateAclsRequest

from services.engines.kafka.cluster import Cluster

_TOPIC = 2
_LITERAL, _PREFIXED = 3, 4
_READ, _DESCRIBE, _DESCRIBE_CONFIGS = 3, 8, 10
_ALLOW = 3
HEARTBEATS = "heartbeats"  # MirrorMaker 2's own, by which its lag is told


async def let_mirror(cluster: Cluster, principal: str) -> None:
    """``principal`` as Kafka calls it ("User:CN=..."). What it may already is no error. Raises
    Unavailable, NotTrusted."""
    for topic, kind in ((f"{cluster.settings.prefix}.log.", _PREFIXED), (HEARTBEATS, _LITERAL)):
        for operation in (_READ, _DESCRIBE, _DESCRIBE_CONFIGS):
            request = CreateAclsRequest(_TOPIC, topic, kind, principal, "*", operation, _ALLOW)
            reply = await cluster.ask(request, controller=True)
            for code, *_ in reply.creation_responses:
                cluster.check(code, f"let {principal} read {topic}")
