"""cordon, uncordon, drain, undrain, switchover, failover, failback, retire.

Every command only *asks*: the evaluator judges the change against the policy, fresh evidence and
the region's safety rules, and names all that stands against it. The controllers carry it out.
"""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

from imctl.commands.asking import DryRun, Override, Yes, run_change
from imctl.options import Data, Format, IdcName, Output
from services.control.rules import Change, Kind

Epoch = Annotated[
    int, typer.Option("--expect-epoch", min=0, help="Refuse unless the policy is at it; 0: any.")
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Until the operation has ended.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds to wait for its end.")]

WAIT_S = 120.0


def cordon(
    idc: IdcName,
    expect_epoch: Epoch = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Send no new clients to an IDC; those who are there stay."""
    change = _change(Kind.CORDON, idc, "", expect_epoch, override)
    run_change(change, dry_run, yes, False, 0.0, output, data)


def uncordon(
    idc: IdcName,
    expect_epoch: Epoch = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Send new clients to a cordoned IDC again."""
    change = _change(Kind.UNCORDON, idc, "", expect_epoch, override)
    run_change(change, dry_run, yes, False, 0.0, output, data)


def drain(
    idc: IdcName,
    expect_epoch: Epoch = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = WAIT_S,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Move every client away from an IDC, to where each would go next; nothing is lost."""
    change = _change(Kind.DRAIN, idc, "", expect_epoch, override)
    run_change(change, dry_run, yes, wait, timeout, output, data)


def undrain(
    idc: IdcName,
    expect_epoch: Epoch = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Stop a drain that is under way; the IDC serves again. A drained IDC: `imctl failback`."""
    change = _change(Kind.UNDRAIN, idc, "", expect_epoch, override)
    run_change(change, dry_run, yes, False, 0.0, output, data)


def switchover(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The IDC to empty.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="The IDC that takes its clients.")],
    expect_epoch: Epoch = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = WAIT_S,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Move an IDC's clients to another one; nothing is lost and no send fails."""
    change = _change(Kind.SWITCHOVER, source, target, expect_epoch, override)
    run_change(change, dry_run, yes, wait, timeout, output, data)


def failover(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The IDC that is lost.")],
    expect_epoch: Epoch = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Declare an IDC failed: its clients go elsewhere at once. An IDC that works: drain it."""
    change = _change(Kind.FAILOVER, source, "", expect_epoch, override)
    run_change(change, dry_run, yes, False, 0.0, output, data)


def failback(
    idc: IdcName,
    expect_epoch: Epoch = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = WAIT_S,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Return traffic to an IDC that was failed or drained, in steps, once it has caught up."""
    change = _change(Kind.FAILBACK, idc, "", expect_epoch, override)
    run_change(change, dry_run, yes, wait, timeout, output, data)


def retire(
    idc: IdcName,
    expect_epoch: Epoch = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Give up an IDC that is failed or drained: nobody keeps logs for it any longer.

    When it returns, it starts from another IDC's snapshot, and `failback` gives it clients."""
    change = _change(Kind.RETIRE, idc, "", expect_epoch, override)
    run_change(change, dry_run, yes, False, 0.0, output, data)


# ------------------------------------------------------------------------------------ shared


def _change(kind: str, idc: str, target: str, epoch: int, override: str | None) -> Change:
    return Change(
        kind=kind,
        idc=idc,
        request_id=secrets.token_hex(8),
        by="operator",
        target=target,
        expect_epoch=epoch,
        overrides=(override,) if override else (),
    )
