"""load: an open loop of chat messages on a running deployment, recorded and judged."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from imcore.checker import Report, check_file
from imcore.checker.latency import Latencies
from imcore.errors import BadInput, Unavailable
from imcore.history import VERSION, Header, HistoryWriter
from imcore.pki import utc_now
from imcore.region.model import Region
from imcore.runtime import SystemClock
from imctl import deployment
from imctl.clients import sdk_clients
from imctl.loop import new_event_loop
from imctl.options import Data, Format, Output
from imctl.output import emit
from imctl.target.local import Local
from services.loadgen.load import Load
from services.loadgen.logins import look
from services.loadgen.population import Addresses, make_population, public_country
from services.loadgen.recorder import Recorder
from services.loadgen.schedule import Rates
from services.loadgen.stats import Sample

SETTLE_S = 15.0


def load(
    users: Annotated[
        int, typer.Option(metavar="N", min=2, help="Number of users; a third have two devices.")
    ] = 60,
    rate: Annotated[float, typer.Option(metavar="N", min=0.1, help="Messages per second.")] = 100.0,
    group_rate: Annotated[
        float, typer.Option(metavar="N", min=0, help="Messages per second to groups, of these.")
    ] = 5.0,
    seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="Duration of the load.")
    ] = 20.0,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Random seed of the load.")] = None,
    history: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where to write the history [default: in the deployment's folder].",
            show_default=False,
        ),
    ] = None,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Generate chat load and judge the result.

    Sends at a fixed rate, records what every client saw, and looks for messages that are missing,
    duplicated or out of order.

    Exit status: 0 every promise held, 1 not.

    Example: imctl load --rate 100 --seconds 30
    """
    if group_rate > rate:
        raise BadInput(f"--group-rate: expected at most --rate ({rate:g}), got {group_rate:g}")
    target = deployment.find(data)
    run_id = f"load-{int(time.time())}"
    path = history or target.data / "histories" / f"{run_id}.jsonl"
    rng = random.Random(seed)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_run(target, path, run_id, users, Rates(rate, group_rate), seconds, rng))
    latencies = Latencies()
    report = check_file(path, [latencies])
    document = _document(path, report, latencies, rate)
    emit(document, output, lambda: _view(document))
    raise typer.Exit(report.exit_code)


async def _run(
    target: Local,
    path: Path,
    run_id: str,
    users: int,
    rates: Rates,
    seconds: float,
    rng: random.Random,
) -> None:
    clock = SystemClock()
    lookup = public_country
    homes = home_countries(target.region)
    # A run's uids are its own: users of an earlier run have other conversations.
    population = make_population(users, homes, rng, lookup, prefix=f"{run_id[5:]}-")
    addresses = Addresses(rng, lookup)
    places = {idc: addresses.take(countries)[0] for idc, countries in homes.items()}
    started = utc_now(clock.wall_ms()).isoformat(timespec="seconds")
    writer = HistoryWriter(path, Header(VERSION, started, target.region.metadata.name, run_id))
    recorder = Recorder(writer.write, clock.now)
    clients = sdk_clients(target, clock, rng)
    load = Load(population, clients, recorder, clock, rng)
    try:
        await load.open()
        recorder.phase("load")
        await _for(load, rates, seconds)
        await load.settle(SETTLE_S)
        recorder.quiet(list(places))
        for failure in await look(clients, recorder, load.looks(), places, "final"):
            raise Unavailable(f"fresh login at {failure.idc} failed: {failure.reason}")
    finally:
        await load.close()
        await clients.close()
        writer.close()


async def _for(load: Load, rates: Rates, seconds: float) -> None:
    running = asyncio.create_task(load.run(rates, _show))
    await asyncio.wait([running], timeout=seconds)
    load.stop()
    await running


def _show(sample: Sample) -> None:
    typer.echo(
        f"{sample.t:4.0f} s  offered {sample.offered:.0f}/s  acked {sample.acked:.0f}/s  "
        f"delivered {sample.deliveries:.0f}/s  ack p99 {sample.ack_p99_ms:.1f} ms",
        err=True,
    )


def home_countries(region: Region) -> dict[str, list[str]]:
    """By IDC, the countries whose clients it gets by the region file: of each shard, the IDC with
    the greatest weight. Where no shard names any, all clients are the default shard's: they come
    from that IDC's own country."""
    homes: dict[str, list[str]] = {idc.name: [] for idc in region.spec.idcs}
    default = region.spec.idcs[0].name
    for shard in region.spec.geo.shards:
        best = max(shard.weights, key=lambda name: shard.weights[name])
        homes[best] += shard.match.countries
        if shard.name == region.spec.geo.default:
            default = best
    if not any(homes.values()):
        homes[default] = [region.idc(default).place.country]
    return {idc: countries for idc, countries in homes.items() if countries}


def _document(path: Path, report: Report, latencies: Latencies, rate: float) -> dict[str, Any]:
    return report.as_json() | {
        "history": str(path),
        "sentence": report.sentence(),
        "rate": rate,
        "latency": [phase.as_json() for phase in latencies.phases],
    }


def _view(document: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row(document["sentence"])
    for phase in document["latency"]:
        ack, receive = phase["ack"], phase["receive"]
        table.add_row(
            f"{phase['name']}: {phase['acked']} of {phase['composed']} acked; "
            f"ack p50 {ack['p50_ms']:.1f} ms, p99 {ack['p99_ms']:.1f} ms; "
            f"receipt p50 {receive['p50_ms']:.1f} ms, p99 {receive['p99_ms']:.1f} ms"
        )
    for kind, examples in document["examples"].items():
        table.add_row(f"{kind}: {'; '.join(examples)}")
    table.add_row(f"history: {document['history']}")
    return table
