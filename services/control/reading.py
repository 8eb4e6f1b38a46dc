"""Follows the committed policy: read from a majority of the registries, kept by the holder."""

from __future__ import annotations

import logging
from collections.abc import Callable

from imcore.errors import ImError
from imcore.runtime import Clock
from services.control.caspaxos import Proposer
from services.policy.document import POLICY_KEY, Policy, from_json
from services.policy.holder import PolicyHolder

log = logging.getLogger("im.control")

STALE_S = 2.0


class Reading:
    """``own``: who follows it. ``first``: what to commit where no policy was ever; None: that is
    for others to do."""

    def __init__(
        self,
        own: str,
        proposer: Proposer,
        holder: PolicyHolder,
        clock: Clock,
        first: Callable[[], Policy] | None = None,
    ) -> None:
        self.answered_at = clock.now()  # when a majority told it last; at first: the start
        self._own = own
        self._proposer = proposer
        self._holder = holder
        self._clock = clock
        self._first = first

    async def read(self) -> bool:
        """Whether a majority has told it."""
        try:
            value, _ = await self._proposer.read(POLICY_KEY)
            if value is None and self._first is not None:
                document = self._first().to_json()
                value = await self._proposer.change(POLICY_KEY, lambda now: now or document)
        except ImError:
            if self._clock.now() - self.answered_at > STALE_S:
                self._holder.stale = True
            return False
        self.answered_at = self._clock.now()
        try:
            policy = from_json(value) if value is not None else None
        except ValueError as error:  # a newer program's, perhaps; a majority has answered
            self._holder.cannot_read(error)
            return True
        if policy is not None and await self._holder.offer(policy):
            log.info("%s follows the policy of epoch %d", self._own, policy.epoch)
        return True
