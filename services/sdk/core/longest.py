"""The longest silence that the path to the service survives. Pure.

Between a phone and its gateway stand NATs and firewalls that forget a connection without traffic
after some time, which differs from network to network and which nobody tells. Every heartbeat that
is not needed costs battery, so in the background it is found out: longer and longer silences are
tried while they are survived, and after one that was not, what is known to go.
"""

from __future__ import annotations

from collections import OrderedDict

GROW = 1.5  # to the next longer silence that is tried
SUCCESSES = 2  # in a row, before a longer one is
CLOSE = 0.1  # once what goes and what does not are as near to each other it is good enough
AGAIN = 20  # successes after which what did not go is tried again: it may have been an accident;
AGAIN_MAX = 640  # then after twice as many, and so on
BACK = 0.6  # when what went before goes no more, twice in a row: another path
WORTH = 0.75  # a silence that traffic has made shorter than this share tells nothing
NETWORKS_MAX = 32  # remembered; the one used longest ago is forgotten


class Longest:
    """Of one network, in seconds: from ``least_s``, which is taken to go, to ``most_s``."""

    def __init__(self, least_s: float, most_s: float) -> None:
        self.interval_s = least_s  # the longest silence to keep now
        self._least_s = least_s
        self._most_s = max(least_s, most_s)
        self._goes_s = least_s
        self._breaks_s: float | None = None
        self._good = 0
        self._bad = 0
        self._again = AGAIN

    def allow(self, most_s: float) -> None:
        """The service waits no longer than that."""
        self._most_s = max(self._least_s, most_s)
        self.interval_s = min(self.interval_s, self._most_s)
        self._goes_s = min(self._goes_s, self._most_s)

    def survived(self, silence_s: float) -> None:
        """After so long without traffic a heartbeat was answered."""
        if silence_s < WORTH * self.interval_s:
            return
        self._goes_s = max(self._goes_s, min(silence_s, self._most_s))
        self._good += 1
        self._bad = 0
        if self._good < SUCCESSES:
            return
        ceiling_s = self._most_s
        if self._breaks_s is not None:
            if self._breaks_s - self._goes_s > CLOSE * self._goes_s:
                ceiling_s = (self._goes_s + self._breaks_s) / 2
            elif self._good < self._again:
                return
            else:
                ceiling_s, self._breaks_s = self._breaks_s, None
                self._again = min(2 * self._again, AGAIN_MAX)
        longer_s = min(GROW * self.interval_s, ceiling_s)
        if longer_s > self.interval_s:
            self.interval_s = longer_s
            self._good = 0

    def lost(self, silence_s: float) -> None:
        """After so long without traffic the connection turned out to be dead."""
        if silence_s < WORTH * self.interval_s:
            return
        self._good = 0
        if silence_s > self._goes_s:
            self._breaks_s = min(silence_s, self._breaks_s or silence_s)
            self.interval_s = self._goes_s
            return
        self._bad += 1
        if self._bad >= 2:
            self._bad, self._again = 0, AGAIN
            self._breaks_s = silence_s
            self._goes_s = self.interval_s = max(self._least_s, BACK * silence_s)


class Networks:
    """What is known of each network; a network is whatever the application calls by one name."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], Longest] = OrderedDict()

    def of(self, network: tuple[str, str], least_s: float, most_s: float) -> Longest:
        found = self._known.get(network)
        if found is None:
            found = self._known[network] = Longest(least_s, most_s)
            if len(self._known) > NETWORKS_MAX:
                self._known.popitem(last=False)
        self._known.move_to_end(network)
        return found
