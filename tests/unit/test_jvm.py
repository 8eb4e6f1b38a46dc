"""What is told of a JVM that ended."""

from __future__ import annotations

import pytest

from imctl.engines.jvm import reason

TRACE = """\
Exception in thread "main" java.lang.IllegalArgumentException: Error creating broker listeners
\tat kafka.server.KafkaConfig.listeners(KafkaConfig.scala:452)
Caused by: java.lang.IllegalArgumentException: two listeners on the same port
\tat org.apache.kafka.server.config.AbstractKafkaConfig.validate(AbstractKafkaConfig.java:241)
\t... 8 more
"""


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (TRACE, "java.lang.IllegalArgumentException: two listeners on the same port"),
        ("one\ntwo\n\n", "two"),
        ("", "no reason given"),
    ],
)
def test_why_it_ended_is_the_innermost_cause_and_not_where(output: str, said: str) -> None:
    assert reason(output) == said
