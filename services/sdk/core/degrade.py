"""When a client gives up long connections for polling, and when it tries them again. Pure.

Some proxies and firewalls kill a connection after some seconds, or let nothing through but HTTP.
What that looks like from here: connections end without a word, again and again, soon after they
began, or end before anything was said. A gateway that dies looks the same, once.
"""

from __future__ import annotations

from services.sdk.core.reconnect import Lost

CUTS = 3  # in a row
LASTED_MS = 60_000  # a connection that lived as long is no victim of such a proxy
BACK_S = 60.0  # until a long connection is tried again; doubled when it was cut again
BACK_MAX_S = 1_800.0
_CUT = ("lost", "dead", "mute")


class Degrade:
    def __init__(self) -> None:
        self.polling = False
        self.back_at = 0.0  # while polling: when a long connection is to be tried
        self._cuts = 0
        self._wait_s = BACK_S

    def ended(self, polled: bool, lost: Lost, now: float) -> None:
        """A connection ended, or could not be made (``lived_ms`` 0). ``polled``: which kind."""
        if polled:
            if not lost.lived_ms:
                self.polling = False  # not to be had either, or the service knows no polling
            return
        if lost.lived_ms >= LASTED_MS:
            self._cuts, self._wait_s = 0, BACK_S
        elif lost.reason in _CUT:
            self._cuts += 1
            if self._cuts >= CUTS:
                self.polling = True
                self._later(now)

    def back(self) -> None:
        """A long connection stands again. It is on probation: one cut, and it is polling again."""
        self.polling = False
        self._cuts = CUTS - 1

    def still_no_way(self, now: float) -> None:
        """A long connection was tried beside the polled one, in vain."""
        self._later(now)

    def changed_network(self, now: float) -> None:
        """What another network did to connections says nothing of this one."""
        self._cuts, self._wait_s, self.back_at = 0, BACK_S, now

    def _later(self, now: float) -> None:
        self.back_at = now + self._wait_s
        self._wait_s = min(2 * self._wait_s, BACK_MAX_S)
