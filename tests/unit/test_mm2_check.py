"""Settings of a MirrorMaker that were edited: what would break a promise is named."""

from __future__ import annotations

import pytest

from imctl.engines import mm2_check
from imctl.engines.mm2_config import Cluster, Credentials, Flows, settings

FLOWS = Flows(
    Cluster("iad", ("i:1",), tls=False, sasl=False),
    (Cluster("fra", ("f:1",), tls=False, sasl=False),),
    "im",
    3,
)
IDENTITY = "org.apache.kafka.connect.mirror.IdentityReplicationPolicy"


def problems(**changes: str | None) -> list[str]:
    found = settings(FLOWS, Credentials())
    for key, value in changes.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = value
    return mm2_check.problems(found, FLOWS)


def test_what_is_generated_has_no_problem() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("replication.policy.class", IDENTITY),
        ("fra->iad.replication.policy.class", IDENTITY),
        ("replication.policy.separator", "_"),
        ("iad.exactly.once.source.support", None),
        ("iad.exactly.once.source.support", "preparing"),
        ("fra.consumer.isolation.level", None),
        ("fra.consumer.auto.offset.reset", "latest"),
        ("topics", None),
        ("topics", ".*"),
        ("topics", r"im\..*"),
        ("topics", r"im\.log\.[0-9]+,im\.meta"),
        ("topics", r".*\.log\.[0-9]+"),
        ("topics", r"im\.log\.1"),
        ("topics", "im(log"),
        ("fra->iad.topics", ".*"),
        ("topics.exclude", r"im\..*"),
        ("clusters", "iad"),
        ("fra.bootstrap.servers", None),
        ("fra->iad.enabled", None),
        ("iad->fra.enabled", "true"),
        ("sync.topic.configs.enabled", None),
        ("sync.topic.acls.enabled", "true"),
        ("sync.group.offsets.enabled", "true"),
        ("fra->iad.sync.topic.configs.enabled", "true"),
        ("refresh.topics.enabled", "false"),
        ("refresh.topics.interval.seconds", "600"),
        ("iad.producer.transaction.timeout.ms", None),
        ("fra.sasl.jaas.config", 'x required username="im" password="hunter2";'),
        ("fra.ssl.keystore.password", "hunter2"),
    ],
)
def test_a_change_that_breaks_a_promise_is_named(key: str, value: str | None) -> None:
    found = problems(**{key: value})
    assert len(found) >= 1 and all(one.startswith(f"{key}: expected ") for one in found), found
    assert not any("hunter2" in one for one in found)


def test_a_mirror_only_reads_from_a_source() -> None:
    (found,) = problems(**{"emit.offset-syncs.enabled": "true"})
    assert found.startswith("offset-syncs.topic.location: expected target")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("topics", r"im[.]log[.]\d+"),
        ("tasks.max", "4"),
        ("refresh.topics.interval.seconds", "5"),
        ("iad->fra.enabled", "false"),
        ("fra.sasl.jaas.config", 'x required password="${file:/p:password}";'),
    ],
)
def test_other_changes_are_the_users_to_make(key: str, value: str) -> None:
    assert problems(**{key: value}) == []
