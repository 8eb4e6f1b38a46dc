"""How far a MirrorMaker 2 is, as metrics."""

from __future__ import annotations

from typing import Any

from services.node.metrics import mirror_rows


def test_each_partition_of_a_flow_is_told_and_what_was_never_measured_is_not() -> None:
    mirror: dict[str, dict[str, Any]] = {
        "iad": {
            "partitions": {0: {"behind": 0}, 3: {"behind": 7}},
            "behind": 7, "heartbeat_age_s": 1.5, "worker_age_s": 0.5, "problem": "",
        },
        "sin": {
            "partitions": {}, "behind": None, "heartbeat_age_s": None, "worker_age_s": None,
            "problem": "sin's Kafka does not answer",
        },
    }  # fmt: skip
    found = mirror_rows(mirror)
    assert found.records == [(("iad", "mirrormaker2", "0"), 0), (("iad", "mirrormaker2", "3"), 7)]
    assert found.seconds == [(("iad", "mirrormaker2"), 1.5)]
    assert found.ages == [(("iad",), 0.5)]
    assert found.problems == [(("iad",), False), (("sin",), True)]
