"""What `imctl restart` makes of the answers of a gateway's pod; a real pod is in
tests/kubernetes/test_idc_in_a_pod.py."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from imctl.errors import Failed
from imctl.reconcile.cluster import Cluster
from imctl.target import calls


class Pod(Cluster):
    def __init__(self, says: str) -> None:
        self._says = says

    async def execute(self, namespace: str, pod: str, command: Sequence[str]) -> str:
        return self._says


async def test_one_gateway_that_was_told_is_enough() -> None:
    await calls.hang_up(Pod("told\n"), "im-fra", "fra-gateway-1")


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ("", "there is no such pod, or no gateway runs in it"),
        ("sh: 5: kill: Operation not permitted\n", "kill: Operation not permitted"),
        ("told\ntold\n", "told"),  # two gateways in a pod: nobody knows which one it is
    ],
)
async def test_any_other_answer_is_an_error_that_names_the_pod(says: str, why: str) -> None:
    with pytest.raises(Failed, match=f"im-fra/fra-gateway-1 was not told to restart.*{why}"):
        await calls.hang_up(Pod(says), "im-fra", "fra-gateway-1")
