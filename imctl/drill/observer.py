"""Looks at the deployment a few times a second while a drill runs: states, lags, epochs, votes,
what each IDC carries, which epoch each ipconf answers with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import aiohttp

from imcore.errors import ImError, Unavailable
from imcore.runtime import Clock
from imcore.tls import client_ssl_context
from imctl.drill.watch import Accusation, Carried, Epochs, Mirrors, Stale, Standing, Stuck, accused
from imctl.identity import token_for
from imctl.scenario import Observed
from imctl.statusview import newest_policy, policies_said
from imctl.target.local import Local
from imctl.traffic import Steering
from services.policy.document import IdcState, Policy

POLL_S = 0.4
STATUS_S = 1.0
IPCONF_S = 1.5


class Asking(NamedTuple):
    """How the ipconfs are asked. ``urls``: by IDC; ``connector``: the way to the network."""

    urls: Mapping[str, str]
    token: str
    connector: Callable[[], aiohttp.BaseConnector]


def asking(target: Local, clock: Clock) -> Asking:
    """Of a deployment on this machine."""
    context = client_ssl_context(target.pki / "ca.pem")
    return Asking(
        {idc.name: f"https://{idc.endpoints.ipconf}" for idc in target.region.spec.idcs},
        token_for(target, "drill", "observer", clock),
        lambda: aiohttp.TCPConnector(ssl=context),
    )


class Observer:
    """``run`` in a task; everything else is what it saw last. ``note``: is told who said which
    epoch of the policy with which content (empty: not told)."""

    def __init__(
        self,
        ipconfs: Asking,
        control: Steering,
        clock: Clock,
        note: Callable[[str, int, str], None],
    ) -> None:
        self.epochs = Epochs()
        self.stale = Stale()
        self.mirrors = Mirrors()
        self.stuck = Stuck()
        self.seen = Observed()
        self.carried: dict[str, Carried] = {}
        self.silent: list[str] = []
        self.alarms: dict[str, list[str]] = {}
        self.unlisted: dict[str, list[str]] = {}  # IDCs that an IDC's ipconf sends nobody to
        self.problem = ""  # why the last look failed
        self.looked_at: float | None = None  # when the last one succeeded
        self._accusations: dict[str, list[Accusation]] = {}  # of each loss one
        self._failed_ms: dict[str, list[int]] = {}  # when failovers were committed, by the policy
        self._ipconfs = ipconfs
        self._control = control
        self._region = control.region
        self._clock = clock
        self._note = note
        self._idcs = control.idcs

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=IPCONF_S)
        headers = {"Authorization": f"Bearer {self._ipconfs.token}"}
        async with aiohttp.ClientSession(
            connector=self._ipconfs.connector(), timeout=timeout, headers=headers
        ) as http:
            while True:
                try:
                    await self._look(http)
                    self.problem, self.looked_at = "", self._clock.now()
                except ImError as error:
                    self.problem = str(error)
                await asyncio.sleep(POLL_S)

    async def _look(self, http: aiohttp.ClientSession) -> None:
        found, votes, answers, policy = await asyncio.gather(
            self._control.statuses(STATUS_S),
            self._control.votes(),
            asyncio.gather(*(self._asked(http, idc) for idc in self._idcs)),
            self._committed(),
        )
        documents = {idc: one for idc, one in found.items() if not isinstance(one, ImError)}
        self.silent = [idc for idc in self._idcs if idc not in documents]
        self.alarms = {idc: list(one.get("alarms") or []) for idc, one in documents.items()}
        if policy is not None:
            for idc, row in policy.idcs.items():
                known = self._failed_ms.setdefault(idc, [])
                if row.state is IdcState.FAILED and row.since_ms not in known:
                    known.append(row.since_ms)
        self._note_policies(documents)
        self._note_load(documents)
        self._note_mirrors(documents)
        standing = [Standing(v.voter, v.accused, v.at_ms - v.held_ms) for v in votes]
        self._note_votes(standing)
        now = self._clock.now()
        for idc, epoch in zip(self._idcs, answers, strict=True):
            if epoch is None:
                self.stale.silent(idc)
            else:
                self.stale.answered(idc, epoch, now)

    async def _committed(self) -> Policy | None:
        """None: no majority of registries answers."""
        with contextlib.suppress(Unavailable):
            return await self._control.policy()
        return None

    async def _asked(self, http: aiohttp.ClientSession, idc: str) -> int | None:
        """The epoch that this IDC's ipconf answers with; None: it says itself that it is stale
        (it is cut off), or gives no answer."""
        url = f"{self._ipconfs.urls[idc]}/v1/gateways"
        with contextlib.suppress(
            aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError
        ):
            async with http.get(url) as response:
                document = await response.json()
                listed = set(document["idcs"])
                self.unlisted[idc] = [name for name in self._idcs if name not in listed]
                epoch = int(document["policy_epoch"])
                self._note(f"the ipconf of {idc}", epoch, "")
                return None if document["stale"] else epoch
        return None

    def _note_policies(self, documents: dict[str, dict[str, Any]]) -> None:
        for idc, (epoch, content) in policies_said(documents).items():
            self.epochs.feed(idc, epoch, content)
            self.stale.committed(epoch, self._clock.now())
            self._note(idc, epoch, content)
        rows = newest_policy(documents.values()).get("idcs") or {}
        states = {idc: str(row.get("state")) for idc, row in rows.items()}
        lags = {
            f"{origin.rpartition('.')[0]}->{idc}": float(lag.get("ms") or 0)
            for idc, document in documents.items()
            for origin, lag in (document.get("lag") or {}).items()
        }
        self.seen = Observed(states or self.seen.states, lags)

    def _note_mirrors(self, documents: dict[str, dict[str, Any]]) -> None:
        now = self._clock.now()
        for document in documents.values():
            if origin := document.get("origin"):
                self.mirrors.ends(origin, document["log"]["ends"], now)
        own = {document.get("origin") for document in documents.values()}
        for idc, document in documents.items():
            for origin, held in (document.get("held") or {}).items():
                if origin in own - {document.get("origin")}:
                    self.mirrors.holds(idc, origin, held, now)
        for idc in self.silent:
            self.mirrors.forget(idc, now)

    def _note_load(self, documents: dict[str, dict[str, Any]]) -> None:
        for document in documents.values():
            self.stuck.feed(document.get("moves", {}).get("stuck", {}))
        self.carried = {
            idc: Carried(
                int(document.get("sessions") or 0),
                float((document.get("rates") or {}).get("accepted_per_s") or 0),
                capacity.sessions,
                capacity.messages_per_s,
            )
            for idc, document in documents.items()
            for capacity in [self._region.idc(idc).capacity]
        }

    def _note_votes(self, votes: list[Standing]) -> None:
        """The first sight of each accusation of who was lost on purpose."""
        hold_ms = self._region.spec.safety.hold_ms
        for idc in {vote.accused for vote in votes}:
            now = accused(votes, idc, len(self._control.voters), hold_ms)
            if not (losses := self._accusations.get(idc)):
                continue
            kept = losses[-1]
            if kept.detected_ms is None:
                kept.detected_ms = now.detected_ms
            if kept.decided_ms is None:
                kept.decided_ms = now.decided_ms
            kept.voters |= now.voters

    def begin_loss(self, idc: str) -> None:
        """Votes from now on are of another loss of it."""
        self._accusations.setdefault(idc, []).append(Accusation())

    def accusation(self, idc: str, loss: int) -> Accusation:
        """Of the so many'th loss of this IDC."""
        return self._accusations[idc][loss]

    def committed_ms(self, idc: str, since_ms: int) -> int | None:
        """When the first failover of it since then was."""
        return next((at for at in self._failed_ms.get(idc, ()) if at >= since_ms), None)
