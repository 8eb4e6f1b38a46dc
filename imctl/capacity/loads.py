"""CPU of the roles of one IDC, in cores, by what causes it."""

from __future__ import annotations

from imctl.capacity.figures import Figures
from imctl.capacity.inputs import Workload

# Which figures each role's load rests on.
_CONNECTIONS = ("heartbeat_us", "connect_us", "gateway_share")
_MESSAGES = ("batching", "rest_share", "role_call_us")
HOPS: dict[str, tuple[str, ...]] = {
    "gateway": ("gateway_in_us", "gateway_out_us", *_CONNECTIONS, *_MESSAGES),
    "state": ("state_request_us", "push_entries_us", "push_session_us", *_CONNECTIONS, *_MESSAGES),
    "im": ("im_check_us", "log_append_us", "im_ack_us", "fold_us", "mirror_us", *_MESSAGES),
    "route": ("signals_us", "batching", "rest_share"),
}
ROUTE_OPS = 2  # of a connection: it came, it went


class Loads:
    """``of(role, part)``: what an IDC with so large a part of all clients does at the peak."""

    def __init__(self, workload: Workload, figures: Figures) -> None:
        self._w, self._f = workload, figures
        self._hop = figures["batching"] * (1 + figures["rest_share"]) / 1e6
        mean = workload.messages_a_day / 86_400
        a_day = workload.connections * workload.connects_per_day / 86_400
        # People come when they write: connects have the peak of messages.
        self._connects_s = a_day * max(1.0, workload.peak / mean)

    def of(self, role: str, part: float) -> dict[str, float]:
        """Driver -> cores. ``part``: 0 to 1."""
        return {
            "gateway": self._gateway,
            "state": self._state,
            "im": self._im,
            "route": self._route,
        }[role](part)

    def _gateway(self, part: float) -> dict[str, float]:
        w, f = self._w, self._f
        here = w.peak * part
        return {
            "requests in": here * f["gateway_in_us"] * self._hop,
            "acks and pushes out": here * (1 + w.pushes) * f["gateway_out_us"] * self._hop,
            "calls between roles": here * f["role_call_us"] / 2 / 1e6,
        } | self._sessions(part, f["gateway_share"])

    def _state(self, part: float) -> dict[str, float]:
        w, f = self._w, self._f
        here = w.peak * part
        # Of a message that has a member here, wherever it was sent; members are spread at random.
        seen = w.peak * sum(g.share * (1 - (1 - part) ** g.members) for g in w.groups)
        return {
            "requests in": here * f["state_request_us"] * self._hop,
            "acks and pushes out": (
                seen * f["push_entries_us"] + here * w.pushes * f["push_session_us"]
            )
            * self._hop,
            # One end of the gateway's call, one of im's.
            "calls between roles": here * f["role_call_us"] / 1e6,
        } | self._sessions(part, 1 - f["gateway_share"])

    def _sessions(self, part: float, share: float) -> dict[str, float]:
        w, f = self._w, self._f
        beats = w.connections * part / w.heartbeat_s
        return {
            "heartbeats": beats * f["heartbeat_us"] * share / 1e6,
            "connects": self._connects_s * part * f["connect_us"] * share / 1e6,
        }

    def _im(self, part: float) -> dict[str, float]:
        w, f = self._w, self._f
        here = w.peak * part
        routes = self._connects_s * ROUTE_OPS
        accept = f["im_check_us"] + f["im_ack_us"]
        return {
            "check, sequence, ack": here * accept * self._hop,
            "log: append, fsync": here * f["log_append_us"] * self._hop,
            "folds, in every IDC": w.peak * f["fold_us"] * self._hop,
            "mirror, in every IDC": w.peak * f["mirror_us"] * self._hop,
            "connects": routes * (part * f["log_append_us"] + f["fold_us"]) * self._hop,
            "calls between roles": here * f["role_call_us"] / 2 / 1e6,
        }

    def _route(self, part: float) -> dict[str, float]:
        return {"signals, in every IDC": self._w.peak * self._f["signals_us"] * self._hop}
