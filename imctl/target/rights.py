"""What the MirrorMakers of other IDCs may do in a broker of the local target."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from imcore.errors import Unavailable
from imcore.region.model import Kafka
from imctl.engines.kafka import principal
from services.engines.kafka import acls
from services.engines.kafka.cluster import Cluster
from services.node.external import kafka_settings

DEADLINE_S = 5.0
_CLOSE_S = 0.1


def mirrors_may_read(kafka: Kafka, idc: str, others: Sequence[str]) -> bool:
    """Grants it, which changes nothing when it is granted already: a wiped broker has forgotten.
    False when the broker does not do it (yet). Raises BadInput."""
    # A loop of its own: whoever waits for the broker may run in one.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, _grant(kafka, idc, others)).result()


async def _grant(kafka: Kafka, idc: str, others: Sequence[str]) -> bool:
    cluster = Cluster(replace(kafka_settings(kafka), deadline_s=DEADLINE_S), idc)
    try:
        async with asyncio.timeout(DEADLINE_S):
            for other in others:
                await acls.allow(cluster, principal(other), acls.of_mirrors(kafka.topic_prefix))
        return True
    except (Unavailable, TimeoutError):
        return False
    finally:
        await cluster.close()
        await asyncio.sleep(_CLOSE_S)  # for a handshake that was broken off: the loop ends now
