"""What the operator counts of itself: calls by verb and resource, looks by kind, what waits."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

import pytest
from prometheus_client.core import Metric

from imcore.errors import Unavailable
from imctl.reconcile.cluster import Conflict, Rejected, reason_of
from imctl.reconcile.lease import NotLeading
from imctl.reconcile.measured import Calls, asked_of
from imctl.reconcile.monitor import OperatorCollector
from imctl.reconcile.reconciler import Key, Reconciler
from services.metrics.catalog import OPERATOR
from tests.unit.test_operator_election import Server, candidate, simulated
from tests.unit.test_operator_objects import FIGURES
from tests.unit.test_operator_reconciler import KEY, NOW, Memory, Nobody

NS = "/apis/imctl.dev/v1alpha1/namespaces/im-fra"


@pytest.mark.parametrize(
    ("method", "path", "asked"),
    [
        ("GET", f"{NS}/idcs/fra", ("get", "idcs")),
        ("GET", f"{NS}/idcs", ("list", "idcs")),
        ("PATCH", f"{NS}/idcs/fra/status", ("patch", "idcs/status")),
        ("GET", "/api/v1/namespaces/im-fra", ("get", "namespaces")),
        ("GET", "/api/v1/namespaces/im-fra/secrets/a", ("get", "secrets")),
        ("POST", "/api/v1/namespaces/im-fra/events", ("create", "events")),
        ("DELETE", "/api/v1/namespaces/im-fra/pods/a", ("delete", "pods")),
        ("GET", "/api/v1/namespaces/im-fra/pods/a/exec", ("get", "pods/exec")),
        ("PUT", "/apis/coordination.k8s.io/v1/namespaces/x/leases/op", ("update", "leases")),
        ("GET", "/apis/cert-manager.io/v1", ("get", "discovery")),
        ("GET", "/api/v1", ("get", "discovery")),
    ],
)
def test_a_call_is_counted_in_the_words_of_rbac(
    method: str, path: str, asked: tuple[str, str]
) -> None:
    calls = Calls()
    calls.done(method, path, 0.003)
    calls.done(method, path, 0.003, "conflict")
    assert asked_of(method, path) == asked
    assert calls.counts == {asked: 2}
    assert calls.failures == {(*asked, "conflict"): 1}


def test_a_reason_is_a_word() -> None:
    errors = [Conflict("a"), Rejected("a"), Unavailable("a"), NotLeading("a"), KeyError("a")]
    assert [reason_of(each) for each in errors] == [
        "conflict", "rejected", "unavailable", "other", "unexpected",
    ]  # fmt: skip


@pytest.fixture
def memory() -> Memory:
    found = Memory()
    found.put("IDC", "fra", spec={"image": "x"})  # no spec of an IDC
    return found


def reconciling(memory: Memory) -> Reconciler:
    return Reconciler(memory, FIGURES, lambda: NOW, Nobody())


def test_what_is_asked_for_waits_until_a_worker_takes_it(memory: Memory) -> None:
    reconciler = reconciling(memory)
    reconciler.look(KEY)
    reconciler.look(KEY)
    reconciler.look(KEY._replace(asks=True))
    reconciler.look(Key("Region", "im-fra", "two-idc"))
    standing = reconciler.standing(time.monotonic() + 10)
    assert standing.objects == {"IDC": 1, "Region": 1}
    assert standing.depth == {"objects": 2, "idcs": 1}
    assert standing.oldest_s["objects"] == pytest.approx(10, abs=1)


async def test_looks_that_fail_are_counted_with_their_object(memory: Memory) -> None:
    reconciler = reconciling(memory)
    running = asyncio.ensure_future(reconciler.run())
    reconciler.look(KEY)
    while not reconciler.measured["objects"].known:  # noqa: ASYNC110 - nothing to wait on
        await asyncio.sleep(0.01)
    standing = reconciler.standing(time.monotonic() + 10)
    assert standing.failing == {"IDC": 1}
    assert standing.depth == {"objects": 0, "idcs": 0}
    assert standing.oldest_s["objects"] == 0  # it is tried again later, and waits for no worker
    looked = reconciler.measured["objects"].known["IDC"]
    assert looked.failures == {"rejected": sum(looked.buckets)}
    del memory.held["IDC", "im-fra", "fra"]
    reconciler.look(KEY)
    while reconciler.standing(0).objects:  # noqa: ASYNC110 - nothing to wait on
        await asyncio.sleep(0.01)
    assert not reconciler.standing(0).failing
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_each_metric_of_the_list_is_shown_and_no_other(memory: Memory) -> None:
    reconciler, election = reconciling(memory), candidate(Server())
    collector = OperatorCollector(election, reconciler, Calls())

    def shown() -> Iterator[str]:
        for each in collector.collect():
            assert isinstance(each, Metric)
            yield each.name + ("_total" if each.type == "counter" else "")

    listed = {metric.name for metric in OPERATOR}
    never_held = {"im_operator_lease_renewed_timestamp_seconds"}
    assert set(shown()) == listed - never_held
    election.renewed_ms = 1
    assert set(shown()) == listed


def test_one_is_ready_while_the_api_server_answers_for_its_lease() -> None:
    async def watch() -> list[tuple[bool, bool]]:
        election = candidate(Server(away=(20.0, 60.0)))
        assert "has not answered for its lease yet" in election.not_ready()
        running = asyncio.ensure_future(election.run())
        seen = []
        for _ in range(3):
            await asyncio.sleep(10)
            seen.append((not election.not_ready(), election.leading()))
        assert election.renewed_ms == pytest.approx(18_000, abs=2_500)
        await asyncio.sleep(5)
        seen.append((not election.not_ready(), election.leading()))
        await asyncio.gather(running, return_exceptions=True)
        return seen

    # It may write for 9 s after its last renewal; 12 s after it it is not ready any more.
    assert simulated(watch()) == [(True, True), (True, True), (True, False), (False, False)]
