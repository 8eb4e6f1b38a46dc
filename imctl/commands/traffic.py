"""cordon, uncordon, drain, undrain, switchover, failover, failback, retire.

Every command only *asks*: the evaluator judges the change against the policy, fresh evidence and
the region's safety rules, and names all that stands against it. The controllers carry it out.
"""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

from imctl.commands.asking import Asking, DryRun, Override, Yes, run_change
from imctl.options import Data, Format, IdcName, Output
from services.control.rules import Change, Kind

Epoch = Annotated[
    int, typer.Option("--expect-epoch", min=0, help="Refuse unless the policy is at it; 0: any.")
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Until the operation has ended.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds to wait for its end.")]

MaxLag = Annotated[
    int,
    typer.Option(
        "--max-lag",
        metavar="MS",
        min=0,
        help="Go on only while replication lags less; at most what the region file says; 0: that.",
    ),
]
Rate = Annotated[
    int,
    typer.Option(
        "--rate",
        metavar="N",
        min=0,
        help="Sessions a second to hand over; never more than takers admit; 0: the policy's 50.",
    ),
]

Hashes = Annotated[
    bool,
    typer.Option(
        "--hashes",
        help="Compare the replicated state as well, by partition: each IDC reads its whole KV.",
    ),
]

WAIT_S = 120.0
FOLLOWED_S = 15.0  # a commit is known in the IDCs within half a second


def cordon(
    idc: IdcName,
    expect_epoch: Epoch = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Send no new clients to an IDC; those who are there stay.

    Example: imctl cordon fra
    """
    change = _change(Kind.CORDON, idc, "", expect_epoch, override)
    run_change(change, Asking(dry_run, yes, output, data))


def uncordon(
    idc: IdcName,
    expect_epoch: Epoch = 0,
    max_lag: MaxLag = 0,
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
    expect_epoch: Epoch = 0,
    max_lag: MaxLag = 0,
    rate: Rate = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = WAIT_S,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Move every client away from an IDC, to where each would go next; nothing is lost.

    Example: imctl drain fra --rate 20
    """
    change = _change(Kind.DRAIN, idc, "", expect_epoch, override, max_lag, rate)
    run_change(change, Asking(dry_run, yes, output, data, wait, timeout))


def undrain(
    idc: IdcName,
    expect_epoch: Epoch = 0,
    max_lag: MaxLag = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Stop a drain that is under way; the IDC serves again. A drained IDC: `imctl failback`.

    Example: imctl undrain fra
    """
    change = _change(Kind.UNDRAIN, idc, "", expect_epoch, override, max_lag)
    run_change(change, Asking(dry_run, yes, output, data))


def switchover(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The IDC to empty.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="The IDC that takes its clients.")],
    expect_epoch: Epoch = 0,
    max_lag: MaxLag = 0,
    rate: Rate = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = WAIT_S,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Move an IDC's clients to another one; nothing is lost and no send fails.

    Example: imctl switchover fra iad --max-lag 500
    """
    change = _change(Kind.SWITCHOVER, source, target, expect_epoch, override, max_lag, rate)
    run_change(change, Asking(dry_run, yes, output, data, wait, timeout))


def failover(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The IDC that is lost.")],
    expect_epoch: Epoch = 0,
    max_lag: Annotated[
        int,
        typer.Option(
            "--max-lag",
            metavar="MS",
            min=0,
            help="Refuse while the survivors lag more behind each other; 0: however much.",
        ),
    ] = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Until all who answer serve by it.")
    ] = True,
    timeout: Timeout = FOLLOWED_S,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Declare an IDC failed: its clients go elsewhere at once. An IDC that works: drain it.

    What only the lost IDC holds is estimated and printed first. It ends by its commit, and has no
    --rate: clients of a lost IDC come by themselves, at the rate that takers admit.

    Example: imctl failover fra --dry-run
    """
    change = _change(Kind.FAILOVER, source, "", expect_epoch, override, max_lag)
    run_change(change, Asking(dry_run, yes, output, data, wait, timeout))


def failback(
    idc: IdcName,
    expect_epoch: Epoch = 0,
    max_lag: MaxLag = 0,
    rate: Rate = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = WAIT_S,
    hashes: Hashes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Return traffic to an IDC that was failed or drained, in steps, once it has caught up.

    First it says, for each origin, what the IDC holds and the others do not, and the other way
    round, and what of sealed logs it has still to publish again.

    Example: imctl failback fra --dry-run --hashes
    """
    change = _change(Kind.FAILBACK, idc, "", expect_epoch, override, max_lag, rate)
    run_change(change, Asking(dry_run, yes, output, data, wait, timeout, hashes))


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

    When it returns, it starts from another IDC's snapshot, and `failback` gives it clients.

    Example: imctl retire fra
    """
    change = _change(Kind.RETIRE, idc, "", expect_epoch, override)
    run_change(change, Asking(dry_run, yes, output, data))


# ------------------------------------------------------------------------------------ shared


def _change(
    kind: str,
    idc: str,
    target: str,
    epoch: int,
    override: str | None,
    max_lag_ms: int = 0,
    rate: int = 0,
) -> Change:
    return Change(
        kind=kind,
        idc=idc,
        request_id=secrets.token_hex(8),
        by="operator",
        target=target,
        expect_epoch=epoch,
        overrides=(override,) if override else (),
        max_lag_ms=max_lag_ms,
        rate=rate,
    )
