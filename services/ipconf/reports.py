"""Clients' reports of gateways that they cannot use: evidence for the failure detector.

Only the number of distinct uids in the last seconds counts, so one loud client is one voice; what
may be stored is bounded whatever they send.
"""

from __future__ import annotations

from collections.abc import Iterable

WINDOW_S = 10.0
EVERY_S = 0.5  # one client is heard this often
UIDS_MAX = 10_000
PER_REQUEST_MAX = 32


class Reports:
    def __init__(self, idcs: Iterable[str]) -> None:
        self._seen: dict[str, dict[str, float]] = {idc: {} for idc in idcs}
        self._heard: dict[str, float] = {}

    def add(self, uid: str, accused: Iterable[str], now: float) -> bool:
        """False when this client spoke too soon again; then nothing is counted."""
        last = self._heard.get(uid)
        if last is not None and now - last < EVERY_S:
            return False
        if len(self._heard) >= UIDS_MAX:
            self._heard = {each: at for each, at in self._heard.items() if now - at < EVERY_S}
        if len(self._heard) >= UIDS_MAX:
            return False
        self._heard[uid] = now
        for idc in dict.fromkeys(accused):
            self.heard_elsewhere(idc, (uid,), now)
        return True

    def heard_elsewhere(self, idc: str, uids: Iterable[str], now: float) -> None:
        """What another instance, which bounds how often a client is heard, has taken."""
        seen = self._seen.get(idc)
        if seen is None:
            return
        for uid in uids:
            if uid in seen or len(seen) < UIDS_MAX:
                seen[uid] = now

    def since(self, at: float) -> dict[str, list[str]]:
        """By IDC, whose reports came then or later; IDCs that nobody accused are missing. What came
        long before is forgotten: an ipconf apart asks for nothing else."""
        for idc, uids in self._seen.items():
            self._seen[idc] = {uid: heard for uid, heard in uids.items() if heard > at - WINDOW_S}
        found = {
            idc: [uid for uid, heard in uids.items() if heard >= at]
            for idc, uids in self._seen.items()
        }
        return {idc: uids for idc, uids in found.items() if uids}

    def counts(self, now: float) -> dict[str, int]:
        """Distinct uids by IDC in the window."""
        for idc, uids in self._seen.items():
            self._seen[idc] = {uid: at for uid, at in uids.items() if now - at <= WINDOW_S}
        return {idc: len(uids) for idc, uids in self._seen.items()}
