"""deploy, rollout: bring a region file to a deployment, one IDC after the other."""

from __future__ import annotations

import asyncio
import random
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from imcore.errors import BadInput, ImError
from imcore.region.load import load_region
from imcore.roles import Role
from imcore.runtime import SystemClock
from imctl import deployment, roles, startup
from imctl.commands.lifecycle import progress, tell_interrupted
from imctl.commands.plan import Canary, look
from imctl.errors import Aborted, Failed, Guarded
from imctl.group import Commands
from imctl.options import Data, Engines, FileData, Format, Output, RegionFile, SitesFile
from imctl.output import emit, notes
from imctl.overriding import known_rule
from imctl.plan.document import Plan
from imctl.plan.takes import Change
from imctl.planning import check_data_fit, fields_of, folder_of, running
from imctl.planview import plan_view, rollout_view
from imctl.rollout import store
from imctl.rollout.driver import Driver
from imctl.rollout.ground import LocalGround
from imctl.rollout.record import ACK_MS_MAX, Kind, Rollout, State
from imctl.rollout.succession import following, next_id, stuck_unit
from imctl.target import runfile
from imctl.target.engines import chosen
from imctl.target.local import Local
from imctl.traffic import Control

Soak = Annotated[
    float,
    typer.Option(metavar="SECONDS", min=0, help="How long all gates must pass after each IDC."),
]
MaxLag = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="MS",
        help="Gate: highest replication lag [default: safety.replication_lag_ms_max].",
        show_default=False,
    ),
]
MaxAck = Annotated[int, typer.Option(metavar="MS", min=1, help="Gate: highest ack latency (p99).")]
UndoOnFailure = Annotated[
    bool, typer.Option("--undo-on-failure", help="Undo the rollout when a step or gate fails.")
]
_WAYS = "`imctl rollout resume` continues it, `imctl rollout undo` undoes it"
Override = Annotated[
    str | None,
    typer.Option(
        metavar="RULE-ID",
        help="Override this safety rule in each drain; recorded.",
        callback=known_rule,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]


def deploy(
    file: RegionFile,
    canary: Canary = "",
    soak: Soak = 10.0,
    max_lag: MaxLag = None,
    max_ack: MaxAck = ACK_MS_MAX,
    undo_on_failure: UndoOnFailure = False,
    override: Override = None,
    faults: Annotated[
        bool,
        typer.Option(
            "--faults", help="If nothing runs yet: allow fault injection, as `imctl up --faults`."
        ),
    ] = False,
    engines: Engines = "",
    sites: SitesFile = None,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: FileData = None,
) -> None:
    """Apply a region file, one IDC at a time.

    Starts the deployment if nothing runs. Otherwise each IDC that needs a restart is drained,
    restarted, given its clients back and watched before the next one. A failing gate pauses the
    rollout. If the command is killed, run it again to continue.

    On Kubernetes, --sites also applies differences in images, gateways and the rest of that file.

    Exit status: 0 done, 1 failed or an IDC was skipped, 3 refused or paused by a gate, 6 undone.

    Example: imctl deploy regions/three-idc.yaml --canary sin --soak 30
    """
    region = load_region(file)
    folder = folder_of(region, data)
    target = running(folder)
    if target is not None:
        target.demand_here("Deploying it")
    last = store.read(folder)
    if target is None or (last is not None and last.kind is Kind.UP and not last.ended):
        if target is None:
            check_data_fit(folder, region)
        _bring_up(file, folder, target, last, Start(faults, engines, sites), output)
        return
    roles.demand(target.pki, Role.ADMIN, "Deploying a region file")
    how = How(canary, soak, max_lag, max_ack, override or "", yes, undo_on_failure)
    with store.driving(target.data):
        roll_out(target, target.keep_wanted(file, sites), how, output)


class Start(NamedTuple):
    """How a deployment is started of which nothing runs; as the options of `deploy`."""

    faults: bool
    engines: str
    sites: Path | None

    def prepare(self, file: Path, folder: Path) -> Local:
        # One that was taken down on Kubernetes starts there again.
        kept = folder / runfile.SITES
        sites = self.sites or (kept if kept.exists() else None)
        if sites is None:
            return Local.prepare(file, folder, self.faults, SystemClock(), chosen(self.engines))
        if self.faults or self.engines:
            raise BadInput("--sites cannot be combined with --faults or --engines")
        # A client of Kubernetes takes its time to load: only for those who have one.
        from imctl.target.kubernetes import Kubernetes

        return Kubernetes.prepare_on(file, folder, sites, SystemClock())


class How(NamedTuple):
    """How a file is rolled out; as the options of `deploy`."""

    canary: str
    soak_s: float
    lag_ms_max: int | None
    ack_ms_max: int
    override: str
    yes: bool
    undo_on_failure: bool


def roll_out(target: Local, wanted: str, how: How, output: Format) -> None:
    """Bring the file of this name to the deployment that runs, or go on where it was interrupted.
    The caller holds `store.driving`. Raises as it ends."""
    last = store.read(target.data)
    store.clear_pause(target.data)
    rollout = _continued(last, wanted)
    if rollout is not None:
        _check_fits(target, rollout)
    else:
        rollout = _begun(target, wanted, last, how)
    if rollout is None:
        _show(store.read(target.data), output, f"{target.region.metadata.name}: no difference")
        return
    rollout = _drive(target, rollout)
    if rollout.state is State.PAUSED and how.undo_on_failure:
        _back_after(target, rollout, output)
    _finish(rollout, output)


# ------------------------------------------------------------------------------------ all of it


def _bring_up(
    file: Path,
    folder: Path,
    target: Local | None,
    last: Rollout | None,
    start: Start,
    output: Format,
) -> None:
    """As `imctl up`; goes on where an earlier one was killed."""
    with store.starting(folder):
        if target is None:
            target = start.prepare(file, folder)
            target.pin_regions()
            wanted = target.own_region()
            rollout = Rollout(next_id(Kind.UP, last), Kind.UP, wanted, wanted, started_ms=_now_ms())
            store.forget(folder)
            store.write(folder, rollout)
        else:
            assert last is not None
            rollout = last
            if target.keep_wanted(file, start.sites) != rollout.wanted:
                raise Guarded(
                    f"{rollout.id}, a start with another file, was interrupted; finish deploying "
                    "that file, or run `imctl down` first"
                )
        try:
            with progress(target) as shown:
                startup.bring_up(target, shown)
        except BaseException as error:
            store.forget(folder)  # nothing runs any more
            if isinstance(error, KeyboardInterrupt):
                tell_interrupted()
            raise
        rollout = rollout.said(
            _now_ms(), "", "everything serves", state=State.DONE, ended_ms=_now_ms()
        )
        store.write(folder, rollout)
        names = ", ".join(idc.name for idc in target.region.spec.idcs)
        _show(rollout, output, f"{names} serving; data in {target.data}")


# ------------------------------------------------------------------------------------ a rollout


def _continued(last: Rollout | None, wanted: str) -> Rollout | None:
    """The rollout that an `imctl` did not live to finish. None also for one that is paused, where
    another file is to take its place. Raises Guarded for one that is paused and brings this file,
    or that is not and brings another."""
    if last is None or last.ended:
        return None
    if last.wanted == wanted and last.state is State.RUNNING:
        typer.echo(f"continuing {last.id}", err=True)
        return last
    if last.wanted == wanted:
        why = f" ({last.why})" if last.why else ""
        raise Guarded(f"{last.id} is {last.state}{why}: {_WAYS}")
    if last.state is State.RUNNING:
        raise Guarded(
            f"{last.id}, a rollout of another file, is not finished: {_WAYS}; to replace it with "
            "this file, run `imctl rollout pause` first"
        )
    return None


def _begun(target: Local, wanted: str, last: Rollout | None, how: How) -> Rollout | None:
    """None: there is no difference. Raises Guarded, with all that stands against it."""
    target.pin_regions()
    plan = asyncio.run(look(target, wanted, how.canary))
    if not plan.differs and not stuck_unit(last):
        return None
    check_allowed(target, plan, wanted, how.override)
    _confirm(plan, how.yes)
    limit = how.lag_ms_max or target.region.spec.safety.replication_lag_ms_max
    begun = following(
        Kind.DEPLOY, wanted, target.own_region(), plan.order, last,
        how.soak_s, limit, how.ack_ms_max, _now_ms(),
    )  # fmt: skip
    begun = replace(begun, override=how.override)
    store.write(target.data, begun)
    return begun


def check_allowed(target: Local, plan: Plan, wanted: str, override: str) -> None:
    """Raises Guarded with all that stands against it; Failed when it cannot run there."""
    if plan.fixed:
        raise Guarded(
            "cannot be changed on a running deployment: " + "; ".join(map(_fixed, plan.fixed))
        )
    if plan.restarted and len(target.region.spec.idcs) == 1:
        raise Guarded(
            f"{plan.restarted[0]} is the only IDC, so no other one could take its clients; run "
            "`imctl down`, then deploy"
        )
    if refusals := plan.refusals(override):
        raise Guarded("nothing was done: " + "; ".join(refusals))
    if objections := target.objections(wanted, plan.order):
        raise Failed("nothing was done: " + "; ".join(objections))


def _fixed(change: Change) -> str:
    return f"{change.difference.field}: {change.reason}"


def _confirm(plan: Plan, yes: bool) -> None:
    if yes:
        return
    notes().print(plan_view(plan))
    moves = sum(each.sessions for each in plan.away)
    stays = [unit for unit in plan.order if unit not in plan.restarted]
    does = f"restart {', '.join(plan.restarted) or 'nothing'}"
    does += f", change {', '.join(stays)} in place" if stays else ""
    typer.confirm(f"This will {does} and move {moves} sessions. Continue?", abort=True, err=True)


def _check_fits(target: Local, rollout: Rollout) -> None:
    """Raises Guarded when something else has changed the deployment since that file was its own,
    such as `imctl migrate kv`."""
    if fixed := fields_of(target, rollout.wanted).fixed:
        fields = "; ".join(map(_fixed, fixed))
        raise Guarded(
            f"{rollout.id} no longer matches the running deployment: {fields}; run `imctl rollout "
            "pause`, then deploy a file that does"
        )


def _drive(target: Local, rollout: Rollout) -> Rollout:
    roles.demand(target.pki, Role.ADMIN, "Driving a rollout")

    async def run() -> Rollout:
        clock = SystemClock()
        async with Control(target, clock, random.Random()) as control:
            ground = LocalGround(target, control, clock)
            return await Driver(ground, rollout, _tell).run()

    with startup.interruptible():
        return asyncio.run(run())


def _tell(unit: str, sentence: str) -> None:
    name = f"{unit}: " if unit else ""
    typer.echo(f"{datetime.now():%H:%M:%S} {name}{sentence}", err=True)


def _undo_of(target: Local, last: Rollout) -> Rollout:
    """Back to the file before ``last``, finished or not."""
    lack = {unit for change in fields_of(target, last.before).changes for unit in change.units}
    order = [unit for unit in target.names() if unit in lack]
    return following(
        Kind.UNDO, last.before, last.wanted, order, last,
        last.soak_s, last.lag_ms_max, last.ack_ms_max, _now_ms(),
    )  # fmt: skip


def _back_after(target: Local, failed: Rollout, output: Format) -> None:
    """Raises Aborted once it is as before, else as a rollout that does not end well."""
    _tell("", f"undoing {failed.id}")
    back = _undo_of(target, failed)
    _check_fits(target, back)
    store.write(target.data, back)
    back = _drive(target, back)
    if not back.ended:
        _finish(back, output)
    _show(back, output, f"{back.id}: {back.state}")
    raise Aborted(f"{failed.id} was undone: {failed.why}")


def _finish(rollout: Rollout, output: Format) -> None:
    """Raises what the rollout came to, unless it is done."""
    _show(rollout, output, f"{rollout.id}: {rollout.state}")
    why = rollout.why
    error: ImError | None = None
    if rollout.state is State.EXCEPTIONS:
        error = Failed(f"{rollout.id} is done except for {why}")
    elif rollout.state is State.STOPPED:
        error = Failed(f"{rollout.id} is paused by the operator; {_WAYS}")
    elif rollout.state is State.PAUSED:
        kind = Guarded if rollout.gate else Failed
        error = kind(f"{rollout.id} is paused: {why}; {_WAYS}")
    if error is not None:
        raise error


def _show(rollout: Rollout | None, output: Format, words: str) -> None:
    document = _plain(rollout) if rollout else {}
    if output is Format.TABLE:
        print(words)
    else:
        emit(document, output, str)


def _plain(rollout: Rollout) -> dict[str, Any]:
    document = asdict(rollout)
    return document | {"state": str(rollout.state), "kind": str(rollout.kind)}


def _now_ms() -> int:
    return SystemClock().wall_ms()


rollout = typer.Typer(
    cls=Commands,
    help="Show, pause, resume or undo a deploy.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@rollout.command("status")
def status(output: Output = Format.TABLE, data: Data = None) -> None:
    """Show the last rollout: the progress of each IDC, and the steps.

    Example: imctl rollout status -o json
    """
    target = deployment.find(data)
    found = _last(target)
    driven = store.is_driven(target.data)
    emit(_plain(found) | {"driven": driven}, output, lambda: rollout_view(found, driven))


@rollout.command("pause")
def pause(data: Data = None) -> None:
    """Pause the rollout before its next step.

    Example: imctl rollout pause
    """
    target = deployment.find(data)
    found = _last(target)
    if found.ended:
        raise Failed(f"{found.id} is {found.state}: there is nothing to pause")
    store.ask_to_pause(target.data)
    if store.is_driven(target.data):
        print(f"{found.id} will pause before its next step")
        return
    with store.driving(target.data):
        found = _last(target)
        if found.state is State.RUNNING:
            store.write(target.data, replace(found, state=State.STOPPED))
    print(f"{found.id} is paused; `imctl rollout resume` continues it")


@rollout.command("resume")
def resume(output: Output = Format.TABLE, data: Data = None) -> None:
    """Resume a rollout that was paused or interrupted.

    Example: imctl rollout resume
    """
    target = deployment.find(data)
    with store.driving(target.data):
        found = _last(target)
        if found.ended or found.kind is Kind.UP:
            raise Failed(f"{found.id} is {found.state}: there is nothing to resume")
        _check_fits(target, found)
        store.clear_pause(target.data)
        found = found.said(_now_ms(), "", "resumed", state=State.RUNNING, why="", gate=False)
        store.write(target.data, found)
        target.find_lost()
        _finish(_drive(target, found), output)


@rollout.command("undo")
def undo(yes: Yes = False, output: Output = Format.TABLE, data: Data = None) -> None:
    """Undo the last rollout, finished or not, one IDC at a time.

    The previous region file is applied again.

    Example: imctl rollout undo --yes
    """
    target = deployment.find(data)
    with store.driving(target.data):
        last = _last(target)
        if last.kind is Kind.UP or last.before == last.wanted:
            raise Failed("there is no earlier region file to return to")
        back = _undo_of(target, last)
        _check_fits(target, back)
        names = ", ".join(back.order) or "nothing"
        if not yes:
            question = f"Undo {last.id}? This will restart {names}, one at a time."
            typer.confirm(question, abort=True, err=True)
        store.clear_pause(target.data)
        store.write(target.data, back)
        target.find_lost()
        _finish(_drive(target, back), output)


def _last(target: Local) -> Rollout:
    found = store.read(target.data)
    if found is None:
        raise Failed("no rollout yet; `imctl deploy FILE` starts one")
    return found
