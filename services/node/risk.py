"""The operator's own risk rules: code of theirs that the region file names."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

from imcore.errors import BadInput, ImError
from imcore.runtime import Clock
from services.ports import NoRisk, Risk

log = logging.getLogger("im.risk")

_SAY_AGAIN_S = 60.0


class Guarded:
    """Rules that raise let everybody in: a mistake in them must not close the service. ``alarm``
    says so for a minute."""

    def __init__(self, rules: Risk, clock: Clock) -> None:
        self._rules = rules
        self._clock = clock
        self._failed_at: float | None = None

    @property
    def alarm(self) -> str:
        failed_at = self._failed_at
        if failed_at is None or self._clock.now() - failed_at > _SAY_AGAIN_S:
            return ""
        return "the risk rules fail, so they stop nobody; the log says why"

    def sign_in(self, uid: str, device: str, address: str) -> ImError | None:
        return self._asked(self._rules.sign_in, uid, device, address)

    def send(self, uid: str, device: str, conversation: str, content: bytes) -> ImError | None:
        return self._asked(self._rules.send, uid, device, conversation, content)

    def _asked(self, rule: Callable[..., Any], *facts: Any) -> ImError | None:
        try:
            verdict = rule(*facts)
            if verdict is None or isinstance(verdict, ImError):
                return verdict
            raise TypeError(f"expected None or an ImError, got {type(verdict).__name__}")
        except Exception:
            if not self.alarm:
                log.exception("a risk rule failed, and stopped nobody")
                self._failed_at = self._clock.now()
            return None


def rules_of(named: str | None, clock: Clock) -> Guarded:
    """``MODULE:NAME`` is called without arguments and gives the rules; None: there are none.
    Raises BadInput."""
    if named is None:
        return Guarded(NoRisk(), clock)
    module, _, name = named.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)()
    except Exception as error:
        raise BadInput(
            f"limits.risk_rules: {named} cannot be made: {error}; "
            "expected a class of a module that is installed beside imctl"
        ) from error
    for method in ("sign_in", "send"):
        if not callable(getattr(made, method, None)):
            raise BadInput(f"limits.risk_rules: {named} has no method {method}")
    return Guarded(made, clock)
