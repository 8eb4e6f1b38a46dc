"""A real HorizontalPodAutoscaler scales the gateways of an IDC by their connections, and its route
instances by their CPU."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imctl.reconcile.gatewayobjects import MONITOR
from imctl.testing.cast import Cast
from imctl.testing.cluster import lab as pods_lab
from imctl.testing.cluster.cluster import Cluster
from imctl.testing.cluster.lab import Pods
from imctl.testing.cluster.metrics import Metrics
from imctl.testing.lab import until as lab_until

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]

Figures = Callable[[str, object], None]
OTHER, SCALED = "fra", "dub"
SCALES_S = 240  # a look of the controller each 15 s, and a pod that starts on a busy machine


@pytest.fixture(scope="module")
def pods(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    with pods_lab.running(cluster, tmp_path_factory.mktemp("pods"), None, [SCALED]) as found:
        yield found


def patched(pods: Pods, kind: str, spec: dict[str, object]) -> None:
    pods.kubectl(SCALED, "patch", kind, SCALED, "--type=merge", "-p", json.dumps({"spec": spec}))


async def comes(pods: Pods, kind: str, ready: int) -> None:
    """So many are wanted, by whoever scales them, and serve."""

    def there() -> bool:
        found = json.loads(pods.kubectl(SCALED, "get", kind, SCALED, "-o", "json"))
        status = found.get("status", {})
        wanted = found["spec"]["replicas"]
        return (wanted, status.get("ready"), status.get("phase")) == (ready, ready, "Serving")

    async def asked() -> bool:
        return await asyncio.to_thread(there)

    try:
        await lab_until(asked, SCALES_S, f"there are not {ready} of {kind}")
    except AssertionError:
        print(pods.kubectl(SCALED, "describe", "horizontalpodautoscaler"))
        raise


async def test_gateways_follow_their_connections_and_route_instances_their_cpu(
    cluster: Cluster, pods: Pods, tmp_path: Path, figures: Figures
) -> None:
    metrics = Metrics(cluster, pods.data / "pki", MONITOR)
    async with (
        metrics.served(tmp_path / "metrics", pods.namespaces[SCALED]),
        pods.lab() as lab,
        Cast(lab, tmp_path) as cast,
    ):
        bounds = {"min": 1, "max": 2}
        patched(pods, "gatewaycluster", {"replicas": 1, "autoscaling": bounds | {"connections": 3}})
        await comes(pods, "gatewaycluster", 1)
        began = time.monotonic()
        couples = await cast.couples(8, SCALED, OTHER)
        async with cast.talking(couples):
            await comes(pods, "gatewaycluster", 2)
            figures(
                "connections above the mean to a second gateway, s", round(time.monotonic() - began)
            )
            patched(pods, "routecluster", {"replicas": 1, "autoscaling": bounds | {"cpu": 1}})
            await comes(pods, "routecluster", 2)
        await cast.judge()
    assert metrics.asked == {"im_gateway_connections", "cpu"}
