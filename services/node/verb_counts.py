"""How a process tells its core what it has counted of a role's verbs."""

from __future__ import annotations

from imcore.proto import front_pb2 as front
from services.metrics.verbs import Verb


def verb_count(role: str, name: str, counted: Verb) -> front.VerbCount:
    return front.VerbCount(
        role=role, verb=name, buckets=counted.buckets, seconds=counted.seconds,
        failures=counted.failures,
    )  # fmt: skip
