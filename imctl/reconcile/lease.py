"""Who may write: one operator of all, by a Lease that it renews. Pure: the shell sends and waits.

How long a holder has been silent is measured on one's own steady clock, from when its last renewal
was seen: clocks of machines are not compared. A holder counts its own time from when a renewal was
*sent*, stops writing ``RENEW_WITHIN_S`` after it, and lets no write take longer than that; another
takes the lease ``LEASE_S`` after what it saw, so later. Between both lie three seconds for a write
that the server was given and the operator no longer waits for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from typing import Any

from imcore.errors import ImError

Object = dict[str, Any]
WORKS_IN = "imctl.dev/namespaces"  # of the Lease: where its operators work; empty: everywhere
LEASE_S = 12
RENEW_WITHIN_S = 9.0
EVERY_S = 2.0  # between renewals, and between looks at another's
# A call for the lease, and the rest before it is tried again: a renewal may fail, and the next one
# be slow, before the time is over.
CALL_S = 3.0
RETRY_S = 0.5


class NotLeading(ImError):
    """This operator may not write (any more)."""


@dataclass(slots=True)
class Leadership:
    own: str  # the identity of this process, unique
    namespace: str
    name: str
    namespaces: tuple[str, ...] = ()  # where it works, for those who look for an operator
    _version: str = ""
    _holder: str = ""
    _seen: float = 0.0  # when this version was first seen
    _until: float = 0.0  # up to when this operator may write

    def seen(self, lease: Object | None, now: float) -> None:
        """What a read has shown; None: there is none."""
        version = lease["metadata"]["resourceVersion"] if lease else ""
        if lease is None or version != self._version:
            self._version, self._seen = version, now
            self._holder = (lease or {}).get("spec", {}).get("holderIdentity") or ""

    def may_take(self, now: float) -> bool:
        """Its own, nobody's, or of one that has been silent for long enough."""
        return self._holder in ("", self.own) or now - self._seen >= LEASE_S

    def free_in(self, now: float) -> float:
        """Seconds until another's lease may be taken, if it stays silent."""
        return inf if self.may_take(now) else LEASE_S - (now - self._seen)

    def body(self, lease: Object | None, wall: str) -> Object:
        """To be written; the version of ``lease`` in it refuses it if somebody else was faster.
        ``wall``: RFC 3339 with microseconds, for people."""
        old = (lease or {}).get("spec", {})
        same = old.get("holderIdentity") == self.own
        metadata: Object = {"name": self.name, "namespace": self.namespace}
        metadata["annotations"] = {WORKS_IN: ",".join(self.namespaces)}
        if lease is not None:
            metadata["resourceVersion"] = lease["metadata"]["resourceVersion"]
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": self.own,
                "leaseDurationSeconds": LEASE_S,
                "acquireTime": old["acquireTime"] if same else wall,
                "renewTime": wall,
                "leaseTransitions": old.get("leaseTransitions", 0) + (0 if same else 1),
            },
        }

    def written(self, lease: Object, sent: float) -> None:
        """The write that was sent then has been taken; ``lease``: as it is now."""
        self._version = lease["metadata"]["resourceVersion"]
        self._holder, self._seen, self._until = self.own, sent, sent + RENEW_WITHIN_S

    def left(self, now: float) -> float:
        """Seconds for which this operator may still write; at most 0: it may not."""
        return self._until - now

    @property
    def holder(self) -> str:
        return self._holder


# ------------------------------------------------------------- as those see it who hold none


def works_in(lease: Object, namespace: str) -> bool:
    """Of an operator that does not say where it works, nobody knows that it does not."""
    said = lease["metadata"].get("annotations", {}).get(WORKS_IN, "")
    return not said or namespace in said.split(",")


def holder_of(lease: Object) -> str:
    """Empty: it was given back."""
    return str(lease.get("spec", {}).get("holderIdentity") or "")


def is_fresh(lease: Object, now_ms: int) -> bool:
    """By the time of day, which is another machine's: what seems old may only be an hour that is
    wrong, and is looked at once more."""
    try:
        renewed = datetime.fromisoformat(lease["spec"]["renewTime"])
    except (KeyError, TypeError, ValueError):
        return False
    passed = datetime.fromtimestamp(now_ms / 1000, UTC) - renewed.astimezone(UTC)
    return abs(passed.total_seconds()) < LEASE_S
