"""When a MirrorMaker 2 that runs has stopped working, and how long to wait between starts. Pure.

Kafka Connect gives a task up after some errors, and a worker whose broker dies while it starts can
end up with connectors that have no tasks, and says nothing about it. Seen from outside, only its
heartbeats tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# What Kafka says when it gives a task up: nothing in the process starts it again.
GIVEN_UP = "Task is being killed and will not recover until manually restarted"
SILENT_S = 30.0
STARTING_S = 90.0  # until the first sign; 10 to 20 do on a machine at rest, 60 on a busy one
SILENT_MOST_S = 300.0  # a start interrupts every flow: one that does not help is not made often
BACKOFF_S = 1.0
BACKOFF_MOST_S = 30.0


class Watch:
    """Of one MirrorMaker's flows, named by their sources."""

    def __init__(self, flows: Sequence[str]) -> None:
        self._silent_s = dict.fromkeys(flows, 0.0)
        self._last: Mapping[str, int] | None = None
        self._limit_s = self._starting_s = STARTING_S
        self._backoff_s = BACKOFF_S

    def looked(self, heartbeats: Mapping[str, int], seconds: float) -> list[str]:
        """After a look at the heartbeats that was answered: their times, by flow, and how long ago
        the look before was due. Returns the flows that have been silent for too long."""
        # What the first look after a start finds may be of the MirrorMaker before: no sign of life.
        last = heartbeats if self._last is None else self._last
        for flow in self._silent_s:
            heard = heartbeats.get(flow) != last.get(flow)
            self._silent_s[flow] = 0.0 if heard else self._silent_s[flow] + seconds
        self._last = dict(heartbeats)
        if not any(self._silent_s.values()):
            self._limit_s, self._starting_s, self._backoff_s = SILENT_S, STARTING_S, BACKOFF_S
        return [flow for flow, silent_s in self._silent_s.items() if silent_s >= self._limit_s]

    def unanswered(self) -> None:
        """The Kafka that it writes to did not answer: whoever is silent then is not to blame."""
        self._silent_s = dict.fromkeys(self._silent_s, 0.0)

    def restart(self) -> float:
        """It is about to be started again: how long to wait before that, seconds."""
        self._silent_s = dict.fromkeys(self._silent_s, 0.0)
        self._last = None
        self._limit_s = self._starting_s
        self._starting_s = min(2 * self._starting_s, SILENT_MOST_S)
        wait_s = self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_MOST_S)
        return wait_s
