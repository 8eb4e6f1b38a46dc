"""What the operator counts of its calls to the API server (docs/metrics.md). Pure."""

from __future__ import annotations

from collections import Counter

from services.metrics.verbs import Verbs

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
DISCOVERY = "discovery"  # what the API server serves at all


class Calls:
    """``times`` by verb; ``counts`` by verb and resource; ``failures`` by these and the reason."""

    def __init__(self) -> None:
        self.times = Verbs()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.failures: Counter[tuple[str, str, str]] = Counter()

    def done(self, method: str, path: str, seconds: float, reason: str = "") -> None:
        """``reason``: why it failed; that nothing is there is an answer."""
        verb, resource = asked_of(method, path)
        self.times.done(verb, seconds)
        self.counts[verb, resource] += 1
        if reason:
            self.failures[verb, resource, reason] += 1


def asked_of(method: str, path: str) -> tuple[str, str]:
    """A call's verb and resource, in the words of RBAC: ("patch", "idcs/status")."""
    parts = path.split("/")[1:]
    below = parts[3:] if parts[0] == "apis" else parts[2:]
    if below[:1] == ["namespaces"] and len(below) > 2:
        below = below[2:]
    if not below:
        return "get", DISCOVERY
    resource = "/".join([below[0], *below[2:3]])
    return _VERBS.get(method) or ("get" if len(below) > 1 else "list"), resource
