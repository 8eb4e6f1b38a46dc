"""``imctl demo``: IDCs under load, one of them killed, and a report of what the clients saw."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console

from imcore.checker import Report as Verdict
from imcore.checker import check_file
from imcore.checker.availability import Availability
from imcore.checker.latency import Latencies
from imcore.errors import BadInput, ImError
from imcore.history import VERSION, Header, HistoryWriter
from imcore.region.load import load_region
from imcore.region.model import Region
from imcore.runtime import SystemClock
from imctl import auditrules, startup
from imctl.clients import sdk_clients
from imctl.commands.load import home_countries
from imctl.loop import new_event_loop
from imctl.moves import LocalDeployment
from imctl.options import Engines
from imctl.output import console
from imctl.report import promises
from imctl.report.live import View, make_view
from imctl.report.model import Promise, RunReport, Subject, write_json, write_text
from imctl.report.page import write_page
from imctl.report.screen import show
from imctl.scenario import Plan, Scenario
from imctl.target.engines import TIKV
from imctl.target.engines import chosen as chosen_engines
from imctl.target.local import Local
from imctl.traffic import Control
from services.loadgen.load import Load
from services.loadgen.population import Population, make_population, public_country
from services.loadgen.recorder import Recorder
from services.loadgen.schedule import Rates

REGION = Path("regions/three-idc.yaml")
CLOSE_S = 10.0  # hundreds of clients on a machine that is too busy
JUDGING_S = 10.0  # of the whole run's time, what starting and judging take
RATE_MARGIN = 1.05  # arrivals are random: so much is offered that the promised rate is reached
GROUPS_MAX = 20.0  # messages per second
GROUPS_SHARE = 1 / 3  # of the rate, below that
GROUP_MARGIN = 1.25


class Size(NamedTuple):
    """Of the load, where the command does not say it."""

    clients: int
    rate: float


USUAL = Size(300, 300.0)
SMALL = Size(30, 10.0)  # nineteen processes on two cores: what they hold with some room


def demo(
    victim: Annotated[
        str | None,
        typer.Option(help="The IDC to kill [default: a different one each run].", metavar="IDC"),
    ] = None,
    clients: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=6,
            help="Number of users; a third have two devices "
            f"[default: {USUAL.clients}; on TiKV {SMALL.clients}].",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Messages per second to sustain "
            f"[default: {USUAL.rate:g}; on TiKV {SMALL.rate:g}].",
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="Duration of steady load before, and after, the fault."
        ),
    ] = promises.STEADY_S,
    switchover: Annotated[
        bool,
        typer.Option(
            "--switchover/--no-switchover", help="Also do a planned switchover at the end."
        ),
    ] = True,
    file: Annotated[
        Path, typer.Option("--region", metavar="FILE", help="The region file.")
    ] = REGION,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write the report.")] = Path(
        "build/demo"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the deployment's data.")] = False,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Random seed of the clients and their messages.")
    ] = None,
    engines: Engines = "",
) -> None:
    """Kill an IDC under load and check that nothing was lost.

    Starts the IDCs on this machine, connects clients that appear at real public addresses, kills
    one IDC under load, waits for the automatic failover, restarts the IDC, returns its clients,
    does a planned switchover, and checks what every client was shown.

    Exit status: 0 every promise held, 1 not.

    Example: imctl demo --clients 60 --victim fra
    """
    began = time.monotonic()
    clock = SystemClock()
    screen = console()
    run = f"{clock.wall_ms() // 1000 % 16**5:05x}"
    _writable(out)
    data = out / f"data-{run}"
    chosen = _victim(victim, load_region(file), out, clock.wall_ms())
    beside = chosen_engines(engines)
    size = size_of(beside, clients, rate)
    target = Local.prepare(file, data, faults=False, clock=clock, engines=beside)
    settings = _Settings(
        region=target.region,
        run=run,
        victim=chosen,
        clients=size.clients,
        rate=size.rate,
        seconds=seconds,
        switchover=switchover,
        seed=clock.wall_ms() % 1_000_000 if seed is None else seed,
        out=out,
    )
    report: RunReport | None = None
    note = small_note(beside, clients, rate)
    try:
        with startup.interruptible(), _stopping(target):
            screen.print(f"starting {', '.join(_idcs(target.region))}", highlight=False)
            if note:
                screen.print(note, highlight=False)
            startup.bring_up(target, lambda name, serving: None)
            with (
                make_view(screen, _idcs(target.region)) as view,
                asyncio.Runner(loop_factory=new_event_loop) as runner,
            ):
                recorded = runner.run(_run(target, settings, view, clock))
        changes = auditrules.of_folder(data, target.region)
        report = _judge(settings, recorded, changes, clock, began)
        if note:
            report.notes.append(note)
    finally:
        if not keep and report is not None and report.ok:
            shutil.rmtree(data, ignore_errors=True)
    _publish(report, out, screen)
    if not report.ok:
        screen.print(f"logs and data: {data}", highlight=False)
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Settings:
    region: Region
    run: str
    victim: str
    clients: int
    rate: float
    seconds: float
    switchover: bool
    seed: int
    out: Path

    @property
    def history(self) -> Path:
        return self.out / "history.jsonl"

    def limits(self) -> promises.Limits:
        return promises.limits_of(self.region, self.seconds)

    @property
    def group_rate(self) -> float:
        return round(min(self.rate * GROUPS_SHARE, GROUPS_MAX), 1)

    def rates(self) -> Rates:
        groups = offered(self.group_rate, GROUP_MARGIN, self.seconds)
        return Rates(max(offered(self.rate, RATE_MARGIN, self.seconds), groups), groups)


# -------------------------------------------------------------------------------- before


def _idcs(region: Region) -> list[str]:
    return [idc.name for idc in region.spec.idcs]


def _writable(out: Path) -> None:
    """Raises BadInput before anything is started."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".write"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise BadInput(
            f"cannot write in {out}: {error.strerror}; choose another folder with --out"
        ) from error


def _victim(wanted: str | None, region: Region, out: Path, wall_ms: int) -> str:
    """None: the one after the last run's, which a file remembers."""
    idcs = _idcs(region)
    if len(idcs) < 2:
        raise BadInput("--region: the demo needs at least two IDCs")
    if homeless := [idc for idc in idcs if idc not in home_countries(region)]:
        raise BadInput(
            f"--region: no shard with countries gives {', '.join(homeless)} the greatest weight, "
            "so no client of the demo would be at home there"
        )
    if wanted is not None:
        if wanted not in idcs:
            raise BadInput(f"--victim: expected one of {', '.join(idcs)}, got {wanted!r}")
        return wanted
    memory = out / "last-victim"
    last = memory.read_text().strip() if memory.exists() else ""
    position = idcs.index(last) + 1 if last in idcs else wall_ms
    chosen = idcs[position % len(idcs)]
    write_text(memory, chosen + "\n")
    return chosen


def offered(rate: float, margin: float, seconds: float) -> float:
    """So much that random arrivals reach the rate in the steady phases, before and after: three of
    their standard deviations more, where that is more than the margin."""
    judged_s = max(1.0, 2 * (seconds - 1))
    return max(rate * margin, rate + 3 * math.sqrt(rate / judged_s))


def size_of(engines: Sequence[str], clients: int | None, rate: float | None) -> Size:
    """What was asked for, else what such a deployment holds on a machine of two cores."""
    usual = SMALL if TIKV in engines else USUAL
    return Size(usual.clients if clients is None else clients, usual.rate if rate is None else rate)


def small_note(engines: Sequence[str], clients: int | None, rate: float | None) -> str:
    """A sentence where the load is smaller than usual without having been asked to be; or none."""
    if TIKV not in engines or (clients is not None and rate is not None):
        return ""
    size = size_of(engines, clients, rate)
    return (
        f"{size.clients} clients and {size.rate:g} messages/s ({USUAL.clients} and {USUAL.rate:g} "
        "on embedded engines), because the engines of all IDCs share this machine; change it "
        "with --clients and --rate"
    )


@contextlib.contextmanager
def _stopping(target: Local) -> Iterator[None]:
    """However the block ends, nothing of the deployment runs on."""
    try:
        yield
    finally:
        with startup.deaf():
            target.stop()


# -------------------------------------------------------------------------------- the run


@dataclass(slots=True)
class _Recorded:
    scenario: Scenario
    load: Load
    population: Population
    started: str
    broke_off: str
    load_average: float


async def _run(target: Local, settings: _Settings, view: View, clock: SystemClock) -> _Recorded:
    rng = random.Random(settings.seed)
    population = make_population(
        settings.clients,
        home_countries(target.region),
        rng,
        public_country,
        prefix=f"{settings.run}-",
    )
    started = datetime.now(UTC).isoformat(timespec="seconds")
    name = settings.region.metadata.name
    writer = HistoryWriter(settings.history, Header(VERSION, started, name, settings.run))
    recorder = Recorder(writer.write, clock.now, writer.flush)
    connect = sdk_clients(target, clock, rng)
    load = Load(population, connect, recorder, clock, rng)
    addresses = {
        idc: next(client.address for client in population.clients if client.home == idc)
        for idc in _idcs(settings.region)
    }
    plan = Plan(
        before_s=settings.seconds,
        after_s=settings.seconds,
        total_max_s=settings.limits().total_s - JUDGING_S,
        rates=settings.rates(),
        switchover=settings.switchover,
    )
    async with Control(target, clock, rng) as control:
        deployment = LocalDeployment(target, control)
        scenario = Scenario(load, recorder, deployment, connect, view, clock, plan, addresses)
        recorded = _Recorded(scenario, load, population, started, "", os.getloadavg()[0])
        try:
            view.step(f"connecting {len(population.clients)} devices of {settings.clients} clients")
            await load.open()
            _collect_seldom()
            await scenario.run(settings.victim)
        except ImError as error:
            recorded.broke_off = str(error)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await load.close()
                    await connect.close()
            writer.close()
    return recorded


def _collect_seldom() -> None:
    """A full collection over hundreds of clients' objects stops all of them for half a second,
    which would be measured as the service's latency."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1_000)


# -------------------------------------------------------------------------------- after


def _judge(
    settings: _Settings,
    recorded: _Recorded,
    changes: Sequence[auditrules.Judged],
    clock: SystemClock,
    began: float,
) -> RunReport:
    latencies, availability = Latencies(), Availability()
    verdict = check_file(settings.history, [latencies, availability])
    scenario, population = recorded.scenario, recorded.population
    samples = recorded.load.sampler.samples
    report = RunReport(
        subject=Subject.of(
            population,
            region=settings.region.metadata.name,
            run=settings.run,
            started=recorded.started,
            idcs=_idcs(settings.region),
            victim=settings.victim,
            seconds=time.monotonic() - began,
            rate=settings.rates().total,
            group_rate=settings.rates().groups,
            load_average=recorded.load_average,
        ),
        verdict=verdict,
        latencies=latencies.phases,
        availability=availability,
        samples=samples,
        marks=scenario.marks,
        spans=scenario.spans,
        notes=scenario.notes,
    )
    if recorded.broke_off:
        report.notes.append(f"The run ended early: {recorded.broke_off}.")
    report.promises = _promises(settings, scenario, verdict, report)
    report.promises.append(promises.of_rules(changes))
    return report


def _promises(
    settings: _Settings, scenario: Scenario, verdict: Verdict, report: RunReport
) -> list[Promise]:
    limits = settings.limits()
    steady = [span for span in report.spans if span.name in ("before", "after")]
    moves = [move for move in report.availability.moves if move.what == "switchover"]
    found = [
        *promises.of_failover(report.availability, limits),
        *promises.of_verdict(verdict),
        *promises.of_rate(report.samples, steady, settings.rate, settings.group_rate),
        promises.of_return(settings.victim, scenario.serving_after, scenario.serving_before),
        promises.of_time(report.subject.seconds, limits),
    ]
    if moves:
        found += promises.of_switchover(moves[0], limits)
    elif settings.switchover:
        found.append(Promise("Switchover", "done", "not done", False, True))
    return found


def _publish(report: RunReport, out: Path, screen: Console) -> None:
    write_json(report, out / "report.json")
    write_page(report, out / "report.html")
    show(screen, report)
    screen.print(
        f"report: {out / 'report.html'}, {out / 'report.json'}; history: {out / 'history.jsonl'}",
        highlight=False,
    )
