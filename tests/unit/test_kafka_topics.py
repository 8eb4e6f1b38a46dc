"""Which topics an IDC wants in its Kafka."""

from __future__ import annotations

from services.engines.kafka import admin
from services.engines.kafka.settings import KafkaSettings

SETTINGS = KafkaSettings(("k:9092",), "im", replication_factor=3, min_insync_replicas=2)


def names(*there: str, copied: tuple[str, ...] = ()) -> list[str]:
    return [topic.name for topic in admin.wanted(there, SETTINGS, 4, copied)]


def test_a_new_cluster_wants_what_the_first_start_makes() -> None:
    assert names() == ["im.meta", "im.log.1"]
    assert names(copied=("iad", "sin")) == [
        "im.meta", "im.log.1", "iad.im.log.1", "sin.im.log.1",
    ]  # fmt: skip


def test_what_is_there_of_ours_is_wanted_as_it_must_be_and_nothing_else() -> None:
    there = (
        "im.log.2", "im.log.10", "im.relay.iad.1", "iad.im.log.3", "sin.im.log.1", "im.login",
        "im.log.x", "other.meta", "ximylog.1", "heartbeats", "im.meta",
    )  # fmt: skip
    wanted = admin.wanted(there, SETTINGS, 4, ("iad",))
    assert [topic.name for topic in wanted] == [
        "im.meta", "im.log.10", "im.log.2", "iad.im.log.3", "im.relay.iad.1",
    ]  # fmt: skip
    meta, *logs = wanted
    assert (meta.partitions, meta.settings["cleanup.policy"]) == (1, "compact")
    assert {(log.partitions, log.replication_factor) for log in logs} == {(4, 3)}
    assert {log.settings["retention.ms"] for log in logs} == {"-1"}
