"""Probes for the Chaos Toolkit's steady-state hypothesis, each a number or a truth for a tolerance.

Those of what clients feel need our control's load; `idcs_active` and `alarms` do without.
A probe that sees nothing raises: to the toolkit it has failed, and to the verdict it was blind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imcore.errors import ImError
from imctl import admin
from imctl.drill import model
from imctl.drill.session import Session
from imctl.drill.stage import find, stage
from imctl.statusview import newest_policy

STATUS_S = 1.0


def longest_wait_s() -> float:
    """For how long the oldest send that is not answered yet has waited."""
    return _figure("longest_wait_s")


def canary_delay_s() -> float:
    """For how long the oldest acked canary message has waited to be shown to its receiver."""
    return _figure("canary_delay_s")


def failed_sends() -> float:
    """How many sends the applications were told had failed."""
    return _figure("failed_sends")


def load_percent() -> float:
    """Of the fullest IDC: sessions or messages/s, in per cent of its capacity."""
    return _figure("load_percent")


def ipconf_behind_s() -> float:
    """For how long any IDC's ipconf has answered with an older epoch than one committed, without
    saying that it is stale."""
    return _figure("ipconf_behind_s")


def mirror_behind_s() -> float:
    """For how long what one IDC has in its log has been missing in another's copy of it."""
    return _figure("mirror_behind_s")


def idcs_silent() -> float:
    """How many IDCs do not answer."""
    return _figure("idcs_silent")


def epochs_disputed() -> float:
    """Split brain: for how many epochs two IDCs have shown different contents."""
    return _figure("epochs_disputed")


def _figure(name: str) -> float:
    session = stage.need()
    value = round(session.figure(name), 2)
    session.noticed[name] = session.explain(name)
    return value


def idcs_active() -> int:
    """How many IDCs the policy calls active, as the newest policy that any IDC shows says."""
    return active_in(_documents())


def alarms() -> list[str]:
    """All alarms of all IDCs that answer."""
    return alarms_in(_documents())


def active_in(documents: Sequence[Mapping[str, Any]]) -> int:
    rows = newest_policy(documents).get("idcs", {})
    return sum(row["state"] == "active" for row in rows.values())


def alarms_in(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    return [said for document in documents for said in document["alarms"]]


async def seen(session: Session, name: str) -> Any:
    """What the probe of this name answers, in the loop in which the drill lives. Raises ImError:
    it saw nothing."""
    if name in model.FIGURES:
        return round(session.figure(name), 2)
    documents = answers(await session.control.statuses(STATUS_S))
    return active_in(documents) if name == "idcs_active" else alarms_in(documents)


def answers(found: Mapping[str, dict[str, Any] | ImError]) -> list[dict[str, Any]]:
    documents = [one for one in found.values() if not isinstance(one, ImError)]
    if not documents:
        raise ImError("no IDC answers")
    return documents


def _documents() -> list[dict[str, Any]]:
    if stage.session is not None:
        found = stage.undisturbed(stage.session.control.statuses(STATUS_S))
    else:
        target = find()
        idcs = [idc.name for idc in target.region.spec.idcs]
        found = stage.undisturbed(admin.statuses(target, idcs, STATUS_S))
    return answers(found)
