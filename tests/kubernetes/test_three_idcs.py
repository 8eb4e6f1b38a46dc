"""Three IDCs in pods, a namespace each, of `regions/three-idc.yaml`: everybody talks across all of
them, and one is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from imctl.testing.cast import Cast
from imctl.testing.cluster import lab as pods_lab
from imctl.testing.cluster.cluster import Cluster
from tests.kubernetes.losing import killed_and_given_back

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]


def soon_back(spec: dict[str, Any]) -> None:
    spec["safety"] = {"anti_flap_ms": 0}


async def test_three_idcs_talk_and_one_is_lost(
    cluster: Cluster, tmp_path: Path, figures: Callable[[str, object], None]
) -> None:
    began = time.monotonic()
    with pods_lab.running(cluster, tmp_path, soon_back, source=pods_lab.THREE_IDCS) as pods:
        figures("imctl deploy of three IDCs until all serve, s", round(time.monotonic() - began, 1))
        first, *others = pods.idcs
        async with pods.lab() as lab, Cast(lab, tmp_path) as cast:
            couples = [
                *await cast.couples(6, first, *others),
                *await cast.couples(3, others[0], others[1]),
            ]
            async with cast.talking(couples):
                await asyncio.sleep(3)
                figure = partial(
                    figures, "of three IDCs, from kill -9 of one's pod to its failover, s"
                )
                await killed_and_given_back(lab, cast, couples[0], first, others, figure)
                await asyncio.sleep(2)
            await cast.judge()
