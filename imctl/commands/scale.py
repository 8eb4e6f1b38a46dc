"""scale: how many instances of a role an IDC runs."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated

import typer

from imcore.roles import Role
from imctl import deployment, roles
from imctl.commands.asking import DryRun
from imctl.commands.deploy import (
    How,
    MaxAck,
    MaxLag,
    Override,
    Soak,
    UndoOnFailure,
    Yes,
    check_allowed,
    roll_out,
)
from imctl.commands.plan import look
from imctl.errors import OK, USAGE, Guarded
from imctl.options import Data, Format, IdcName, Output
from imctl.output import emit
from imctl.plan.document import as_json
from imctl.plan.scale import counts_of, scaled
from imctl.planview import plan_view
from imctl.rollout import store
from imctl.rollout.record import ACK_MS_MAX
from imctl.target.local import Local


def scale(
    idc: IdcName,
    count: Annotated[
        list[str],
        typer.Argument(metavar="ROLE=COUNT", help="gateway or ipconf, and its number: gateway=3."),
    ],
    soak: Soak = 10.0,
    max_lag: MaxLag = None,
    max_ack: MaxAck = ACK_MS_MAX,
    undo_on_failure: UndoOnFailure = False,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Change the number of gateways or ipconfs of an IDC.

    Works as `imctl deploy` does: the IDC is drained, restarted, given its clients back and watched.
    Only this field of the deployment's copy of the region file changes; your own file does not.

    They share the IDC's one process, so more of them add ports, not cores, unless the deployment
    was started with `up --split`. The ports above the first one's must be free, and clients must
    be given the addresses of new ipconfs. Of the other roles one instance serves.

    Exit status: 0 done or no difference, 1 failed, 2 wrong usage (--dry-run: a difference),
    3 refused or paused by a gate, 6 undone.

    Example: imctl scale fra gateway=3 --dry-run
    """
    target = deployment.find(data)
    change = partial(scaled, idc=idc, counts=counts_of(count))
    if dry_run:
        _would(target, target.keep_changed(change), override or "", output)
    roles.demand(target.pki, Role.ADMIN, "Scaling an IDC")
    with store.driving(target.data):
        wanted = target.keep_changed(change)
        _check_rollout(target, wanted)
        how = How("", soak, max_lag, max_ack, override or "", yes, undo_on_failure)
        roll_out(target, wanted, how, output)


def _would(target: Local, wanted: str, override: str, output: Format) -> None:
    """Raises what the run would be refused by, else Exit."""
    plan = asyncio.run(look(target, wanted))
    emit(as_json(plan), output, lambda: plan_view(plan))
    if plan.differs:
        _check_rollout(target, wanted)
        check_allowed(target, plan, wanted, override)
    raise typer.Exit(USAGE if plan.differs else OK)


def _check_rollout(target: Local, wanted: str) -> None:
    """Raises Guarded: the deployment's own file is that of before an unfinished rollout, which a
    change of one field would take back."""
    last = store.read(target.data)
    if last is not None and not last.ended and last.wanted != wanted:
        raise Guarded(
            f"{last.id} is not finished: run `imctl rollout resume` or `imctl rollout undo` first"
        )
