"""up, down, logs; kill, start, wipe, pause, resume one IDC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from imcore.errors import Refused
from imcore.region.load import load_region
from imcore.runtime import SystemClock
from imctl import audit, deployment, hotrestart, startup
from imctl.errors import Failed, Guarded
from imctl.logview import Shown
from imctl.options import Data, Engines, FileData, Format, IdcName, Output, RegionFile
from imctl.output import notes
from imctl.planning import folder_of
from imctl.rollout import store
from imctl.target.engines import chosen
from imctl.target.local import Local

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it serves.")]


def up(
    file: RegionFile,
    data: FileData = None,
    faults: Annotated[
        bool,
        typer.Option(
            "--faults", help="Allow fault injection (partition, slow, clock, disk, pause)."
        ),
    ] = False,
    wait: Wait = True,
    engines: Engines = "",
    split: Annotated[
        bool,
        typer.Option("--split", help="Run each gateway and each of `ipconfs` in its own process."),
    ] = False,
    standby: Annotated[
        bool,
        typer.Option(
            "--standby", help="With --split: a second core for each IDC, which takes over."
        ),
    ] = False,
    routes: Annotated[
        int,
        typer.Option(
            "--routes",
            min=0,
            max=16,
            metavar="N",
            help="With --split: route instances of each IDC, between its core and gateways.",
        ),
    ] = 0,
) -> None:
    """Start a region file's deployment on this machine.

    Creates missing certificates, starts the link proxy, the witness and each IDC as a separate
    process, and waits until they serve. Ctrl-C during the start stops everything again.

    Example: imctl up regions/three-idc.yaml --faults
    """
    if standby and not split:
        raise typer.BadParameter("--standby: expected only with --split")
    if routes and not split:
        raise typer.BadParameter("--routes: expected only with --split")
    folder = folder_of(load_region(file), data)
    clock, beside = SystemClock(), chosen(engines)
    with store.starting(folder):
        target = Local.prepare(file, folder, faults, clock, beside, split, standby, routes)
        store.forget(target.data)  # all of it starts with this file: no rollout is left to finish
        started = time.monotonic()
        try:
            with progress(target) as shown:
                startup.bring_up(target, shown, wait)
        except KeyboardInterrupt:
            tell_interrupted()
            raise
    names = ", ".join(idc.name for idc in target.region.spec.idcs)
    done = "serving" if wait else "starting"
    print(f"{names} {done} after {time.monotonic() - started:.1f} s; data in {target.data}")


def tell_interrupted() -> None:
    typer.echo("interrupted: everything was stopped", err=True)


@contextmanager
def progress(target: Local) -> Iterator[startup.Progress]:
    """A line for each unit, on a terminal; nothing elsewhere. It is no part of the result."""
    columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"))
    screen = notes()
    with Progress(
        *columns, TimeElapsedColumn(), console=screen, transient=True,
        disable=not screen.is_terminal,
    ) as bars:  # fmt: skip
        tasks = {name: bars.add_task(f"{name} waits", total=1) for name in target.everything()}

        def show(name: str, serving: bool) -> None:
            words = "serves" if serving else "starts"
            bars.update(tasks[name], description=f"{name} {words}", completed=int(serving))

        yield show


def attach(file: RegionFile, data: FileData = None) -> None:
    """Register a deployment that something else runs.

    For example, one run by the Kubernetes operator. `status`, traffic moves, `op`, `audit`,
    `ipconf`, `token`, `send` and `tail` then work through its endpoints. Its pki (`imctl pki init
    FILE`) must already be in the deployment's folder.

    Example: imctl attach regions/two-idc.yaml --data var/two-idc
    """
    target = Local.attach(file, folder_of(load_region(file), data))
    print(f"attached {target.region.metadata.name}; registered in {target.data}")


def down(data: Data = None) -> None:
    """Stop a deployment; its data is kept.

    Example: imctl down --data var/three-idc
    """
    target = deployment.find(data)
    count = sum(unit.state != "gone" for unit in target.units())
    killed = target.stop()
    note = f" ({', '.join(killed)} had to be killed)" if killed else ""
    print(f"stopped {count} processes of {target.region.metadata.name}{note}")


def kill(
    idc: IdcName,
    data: Data = None,
    role: Annotated[
        str,
        typer.Option(
            metavar="ROLE", help="Kill only the processes that run this role (after `up --split`)."
        ),
    ] = "",
) -> None:
    """Kill the processes of an IDC (SIGKILL).

    Or those of one unit alone: the witness, the link proxy, an engine, or after `up --split` a
    gateway, a route instance or an ipconf (fra.ipconf-1).

    Example: imctl kill fra
    """
    target = deployment.find(data)
    if role:
        done = f"its {role} killed (SIGKILL)"
        _audited(target, idc, done, lambda name: target.kill_role(name, role))
        print(f"killed the {role} of {idc}; `imctl start {idc}` starts it again")
        return
    _audited(target, idc, "killed (SIGKILL)", target.kill)
    print(f"killed {idc}; `imctl start {idc}` starts it again")


def start(idc: IdcName, data: Data = None, wait: Wait = True) -> None:
    """Start a killed IDC or unit.

    Example: imctl start fra
    """
    target = deployment.find(data)
    _audited(target, idc, "started", lambda name: target.start([name]))
    if wait:
        asyncio.run(startup.wait_started(target, idc))
    print(f"{idc} {'is serving' if wait else 'is starting'}")


def restart(
    idc: IdcName,
    data: Data = None,
    gateway: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Restart only gateway N, counted from 1."),
    ] = None,
    core: Annotated[
        bool,
        typer.Option("--core", help="Restart the cores instead (after `up --split --standby`)."),
    ] = False,
) -> None:
    """Restart an IDC's gateways, route instances and ipconfs, one at a time.

    Use it to load newly installed code. Needs `up --split`, or on Kubernetes `gateways` in the
    sites file and the right to exec into pods. The process is replaced in place: its
    listener and its connections without TLS stay open. Clients over TLS are first moved to the
    IDC's other gateways, or told to reconnect if there are none. A gateway that could not start on
    the installed code keeps running as it is. So does an ipconf; else it stops listening until it
    has started again, and clients ask the others. A route instance ends, once its gateways have
    gone to another one or straight to the core, and begins anew.

    With --core, the core that stands by is restarted first, takes over, and the other one is
    restarted to stand by. Connections stay open. A core that could not start on the installed code
    does not take over.

    Example: imctl restart fra
    """
    target = deployment.find(data)
    if core:
        _audited(
            target, idc, "cores restarted",
            lambda name: asyncio.run(hotrestart.restart_core(target, name)),
        )  # fmt: skip
        print(f"the cores of {idc} restarted")
        return
    count = len(target.fronts_of(idc))
    if gateway is not None and gateway > count > 0:
        raise typer.BadParameter(f"--gateway {gateway}: {idc} has {count} gateways")

    def done(number: int, row: dict[str, Any]) -> None:
        print(f"gateway {number} of {idc} restarted, {row['connections']} connections kept")

    async def restart_all(name: str) -> None:
        numbers = [gateway] if gateway else list(range(1, count + 1)) or [1]
        if gateway is None:
            await hotrestart.restart_routes(
                target, name, lambda number: print(f"route instance {number} of {name} restarted")
            )
        await hotrestart.restart(target, name, numbers, done)
        if gateway is None:
            await hotrestart.restart_ipconfs(
                target, name, lambda number: print(f"ipconf {number} of {name} restarted")
            )

    _audited(target, idc, "gateways restarted", lambda name: asyncio.run(restart_all(name)))


def wipe(
    idc: IdcName,
    data: Data = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete the data of a stopped IDC.

    That is its log, KV, registry, snapshots and clients' files; its audit log stays. Given an
    engine's name, only that engine's data. PD and TiKV are always wiped together, because neither
    works without the other's data.

    Example: imctl wipe fra
    """
    target = deployment.find(data)
    if not yes:
        where = target.engine(idc).data if idc in target.engine_names() else target.data / idc
        typer.confirm(f"Delete all data of {idc} below {where}?", abort=True, err=True)
    _audited(target, idc, "wiped", target.wipe)
    as_what = "an empty one" if idc in target.engine_names() else "a new incarnation"
    print(f"wiped {idc}; it comes back as {as_what}")


def pause(idc: IdcName, data: Data = None) -> None:
    """Freeze the processes of an IDC (SIGSTOP).

    Connections stay open, but nothing answers.

    Example: imctl pause fra
    """
    target = deployment.find(data)
    _audited(target, idc, "paused (SIGSTOP)", target.pause)
    print(f"paused {idc}; `imctl resume {idc}` resumes it")


def resume(idc: IdcName, data: Data = None) -> None:
    """Resume a paused IDC (SIGCONT).

    Example: imctl resume fra
    """
    target = deployment.find(data)
    _audited(target, idc, "resumed (SIGCONT)", target.resume)
    print(f"resumed {idc}")


def _audited(target: Local, idc: str, done: str, work: Callable[[str], object]) -> None:
    """Refusals and failures stand in the audit too."""
    now_ms = SystemClock().wall_ms()
    try:
        work(idc)
    except (Guarded, Refused) as error:
        audit.fault(target, now_ms, idc, "refused", f"not {done}: {error}")
        raise
    except Failed as error:
        audit.fault(target, now_ms, idc, "not done", f"not {done}: {error}")
        raise
    audit.fault(target, now_ms, idc, "done", done)


def logs(
    idc: Annotated[
        str | None, typer.Argument(metavar="[UNIT]", help="An IDC or another unit [default: all].")
    ] = None,
    data: Data = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing new lines.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", metavar="N", min=0, help="Number of trailing lines.")
    ] = 50,
    trace: Annotated[
        str, typer.Option(metavar="ID", help="Only lines of this trace (see `imctl send --trace`).")
    ] = "",
    output: Output = Format.TABLE,
) -> None:
    """Show the logs of one unit or of all units.

    Units are the IDCs, their engines, the witness and the link proxy. With --trace, lines are
    sorted by time.

    Example: imctl logs fra --follow
    """
    target = deployment.find(data)
    target.demand_here("Showing its logs")
    if idc is not None and idc not in target.everything():
        raise typer.BadParameter(f"expected one of {', '.join(target.everything())}, got {idc}")
    if follow:
        target.demand_files("Following its logs")
    files = {name: target.log_file(name) for name in target.everything() if idc in (None, name)}
    shown = Shown(_trace_id(trace), output is Format.JSON, len(files) > 1)
    ends = shown.end(files, lines)
    while follow:
        time.sleep(0.2)
        for name, path in files.items():
            ends[name] = shown.go_on(name, path, ends[name])


def _trace_id(text: str) -> str:
    """Of a trace id or a whole traceparent."""
    found = text.split("-")[1] if text.count("-") == 3 else text
    if found and (len(found) != 32 or set(found) - set("0123456789abcdef")):
        raise typer.BadParameter(f"expected 32 hexadecimal digits, got {text}")
    return found
