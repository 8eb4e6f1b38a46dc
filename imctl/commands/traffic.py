"""cordon, uncordon, drain, undrain, switchover, failover, failback, retire.

Every command only *asks*: the evaluator judges the change against the policy, fresh evidence and
the region's safety rules, and names all that stands against it. The controllers carry it out.
"""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

from imctl.commands.asking import Asking, DryRun, Override, Yes, run_change
from imctl.options import By, Data, Format, IdcName, Output
from services.control.rules import Change, Kind
from services.policy.document import MOVES_PER_S

Epoch = Annotated[
    int | None,
    typer.Option(
        "--expect-epoch", metavar="N", min=1, help="Refuse unless the policy is at this epoch."
    ),
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the operation to finish.")]
Timeout = Annotated[
    float, typer.Option(metavar="SECONDS", min=1, help="Maximum time to wait, with --wait.")
]

MaxLag = Annotated[
    int | None,
    typer.Option(
        "--max-lag",
        metavar="MS",
        min=1,
        help="Proceed only while replication lag is below this; cannot exceed the region file's "
        "limit [default: that limit].",
    ),
]
Rate = Annotated[
    int | None,
    typer.Option(
        "--rate",
        metavar="N",
        min=1,
        help="Sessions to hand over per second, capped by what the receiving IDCs admit "
        f"[default: {MOVES_PER_S}].",
    ),
]

Asked = Annotated[
    By | None,
    typer.Option(
        "--by",
        help="Who asks the registries: imctl itself, or on Kubernetes the operator, told by a "
        "TrafficOperation [default: operator where one is active that could, else registries].",
        show_default=False,
    ),
]
Reason = Annotated[
    str,
    typer.Option(
        "--reason", metavar="TEXT", help="Why; kept in the TrafficOperation (--by operator)."
    ),
]

Hashes = Annotated[
    bool,
    typer.Option(
        "--hashes",
        help="Also compare the replicated state, partition by partition; each IDC reads its whole "
        "KV for this.",
    ),
]

WAIT_S = 120.0
FOLLOWED_S = 15.0  # a commit is known in the IDCs within half a second


def cordon(
    idc: IdcName,
    expect_epoch: Epoch = None,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Stop sending new clients to an IDC.

    Connected clients stay.

    Example: imctl cordon fra
    """
    change = _change(Kind.CORDON, idc, "", expect_epoch, override)
    run_change(change, Asking(dry_run, yes, output, data))


def uncordon(
    idc: IdcName,
    expect_epoch: Epoch = None,
    max_lag: MaxLag = None,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Send new clients to a cordoned IDC again.

    Example: imctl uncordon fra
    """
    change = _change(Kind.UNCORDON, idc, "", expect_epoch, override, max_lag)
    run_change(change, Asking(dry_run, yes, output, data))


def drain(
    idc: IdcName,
    expect_epoch: Epoch = None,
    max_lag: MaxLag = None,
    rate: Rate = None,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = WAIT_S,
    by: Asked = None,
    reason: Reason = "",
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Move all clients away from an IDC.

    Each client goes to the next IDC that the policy gives it. No message is lost.

    Example: imctl drain fra --rate 20
    """
    change = _change(Kind.DRAIN, idc, "", expect_epoch, override, max_lag, rate)
    run_change(change, Asking(dry_run, yes, output, data, wait, timeout, by=by, reason=reason))


def undrain(
    idc: IdcName,
    expect_epoch: Epoch = None,
    max_lag: MaxLag = None,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Cancel a drain that is in progress.

    The IDC takes clients again. For an IDC that is already drained, use `imctl failback`.

    Example: imctl undrain fra
    """
    change = _change(Kind.UNDRAIN, idc, "", expect_epoch, override, max_lag)
    run_change(change, Asking(dry_run, yes, output, data))


def switchover(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The IDC to empty.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="The IDC to move its clients to.")],
    expect_epoch: Epoch = None,
    max_lag: MaxLag = None,
    rate: Rate = None,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = WAIT_S,
    by: Asked = None,
    reason: Reason = "",
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Move all clients of one IDC to another.

    No message is lost and no send fails.

    Example: imctl switchover fra iad --max-lag 500
    """
    change = _change(Kind.SWITCHOVER, source, target, expect_epoch, override, max_lag, rate)
    run_change(change, Asking(dry_run, yes, output, data, wait, timeout, by=by, reason=reason))


def failover(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The IDC to declare failed.")],
    expect_epoch: Epoch = None,
    max_lag: Annotated[
        int | None,
        typer.Option(
            "--max-lag",
            metavar="MS",
            min=1,
            help="Refuse while the surviving IDCs lag more than this behind each other "
            "[default: no limit].",
        ),
    ] = None,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait/--no-wait", help="Wait until every IDC that answers follows the new policy."
        ),
    ] = True,
    timeout: Timeout = FOLLOWED_S,
    by: Asked = None,
    reason: Reason = "",
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Declare an IDC failed and send its clients elsewhere.

    For an IDC that still works, use `imctl drain`. First prints an estimate of the records that
    only the lost IDC has. There is no --rate: the clients reconnect on their own, as fast as the
    receiving IDCs admit them.

    Example: imctl failover fra --dry-run
    """
    change = _change(Kind.FAILOVER, source, "", expect_epoch, override, max_lag)
    run_change(change, Asking(dry_run, yes, output, data, wait, timeout, by=by, reason=reason))


def failback(
    idc: IdcName,
    expect_epoch: Epoch = None,
    max_lag: MaxLag = None,
    rate: Rate = None,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = WAIT_S,
    hashes: Hashes = False,
    by: Asked = None,
    reason: Reason = "",
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Return clients to a failed or drained IDC, in steps.

    Starts once the IDC has caught up. First prints, for each origin, which records only this IDC
    or only the other IDCs have, and how many records of sealed logs it still has to republish.

    Example: imctl failback fra --dry-run --hashes
    """
    change = _change(Kind.FAILBACK, idc, "", expect_epoch, override, max_lag, rate)
    run_change(
        change, Asking(dry_run, yes, output, data, wait, timeout, hashes, by=by, reason=reason)
    )


def retire(
    idc: IdcName,
    expect_epoch: Epoch = None,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Stop keeping logs for a lost IDC.

    The IDC must be failed or drained. If it returns, it starts from another IDC's snapshot, and
    `imctl failback` gives it its clients back.

    Example: imctl retire fra
    """
    change = _change(Kind.RETIRE, idc, "", expect_epoch, override)
    run_change(change, Asking(dry_run, yes, output, data))


# ------------------------------------------------------------------------------------ shared


def _change(
    kind: str,
    idc: str,
    target: str,
    epoch: int | None,
    override: str | None,
    max_lag_ms: int | None = None,
    rate: int | None = None,
) -> Change:
    return Change(
        kind=kind,
        idc=idc,
        request_id=secrets.token_hex(8),
        by="operator",
        target=target,
        expect_epoch=epoch or 0,
        overrides=(override,) if override else (),
        max_lag_ms=max_lag_ms or 0,
        rate=rate or 0,
    )
