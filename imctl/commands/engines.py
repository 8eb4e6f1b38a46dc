"""engines: what the engines besides the embedded ones need, how to get it, and what they are on
Kubernetes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from imctl.engines import binaries, building, recording
from imctl.engines.binaries import ENGINES, TOOLS, Engine, Tool
from imctl.errors import USAGE, Failed
from imctl.group import Commands
from imctl.options import MIRROR_SECRET, Format, MirrorSecret, Output, RegionFile
from imctl.output import console, emit, emit_objects

if TYPE_CHECKING:
    from imctl.engines.topics import Plan
    from services.engines.kafka.admin import Topic

ALL = "all"
TIKV_VERSION = "v8.5.2"

engines = typer.Typer(
    cls=Commands,
    help="Build engines, check Kafka's topics, render objects for Kubernetes.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@engines.command()
def doctor(output: Output = Format.TABLE) -> None:
    """Show which engines are installed, and how to install the others.

    Exit status: 0 every engine can run here, 1 one cannot.

    Example: imctl engines doctor
    """
    rows = [*map(_engine, ENGINES.values()), *map(_tool, TOOLS.values())]
    emit({"engines": rows, "cache": str(binaries.cache_folder())}, output, lambda: _table(rows))
    if any(row["needed"] and not row["found"] for row in rows):
        raise typer.Exit(1)


def _engine(engine: Engine) -> dict[str, Any]:
    older = f" {binaries.dotted(engine.system)} or newer" if engine.system else ""
    return _row(
        engine.name,
        f"{engine.words}{older}: {engine.serves}",
        binaries.installed(engine.name),
        f"imctl engines install {engine.name}",
        needed=True,
    )


def _tool(tool: Tool) -> dict[str, Any]:
    runs = [engine.name for engine in ENGINES.values() if engine.runs_with == tool.name]
    builds = [engine.name for engine in ENGINES.values() if engine.builds_with == tool.name]
    purpose = f"runs {', '.join(runs)}" if runs else f"builds {', '.join(builds)}"
    # What only builds is a way to get there: whoever has the engines does not need it.
    needed = bool(runs) or any(binaries.installed(name) is None for name in builds)
    found = binaries.find_tool(tool.name)
    return _row(tool.name, f"{tool.needs}: {purpose}", found, tool.remedy, needed)


def _row(
    name: str, needs: str, found: binaries.Program | None, command: str, needed: bool
) -> dict[str, Any]:
    return {
        "name": name,
        "needs": needs,
        "needed": needed,
        "found": found is not None,
        "version": found.version if found else None,
        "path": str(found.path) if found else None,
        "install": None if found else command,
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("", "NEEDED", "FOUND", "TO INSTALL"):
        table.add_column(column, overflow="fold")
    for row in rows:
        missing = "missing" if row["needed"] else "missing, not needed"
        found = f"{row['version']} at {row['path']}" if row["found"] else missing
        table.add_row(row["name"], row["needs"], found, row["install"] or "")
    return table


@engines.command()
def topics(
    file: RegionFile,
    idc: Annotated[
        list[str] | None,
        typer.Option("--idc", metavar="NAME", help="Of this IDC; may be given again."),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Show which topics the region file wants in each IDC's Kafka, and how they differ.

    Nothing is changed: an IDC makes what is missing when it starts, and differences are the
    operator's to mend. Exit status: 0 no difference, 1 a Kafka cannot be looked at, 2 a difference.

    Example: imctl engines topics regions/three-idc.yaml --idc fra
    """
    from imcore.region.load import load_region
    from imctl.engines.topics import plans

    found = plans(load_region(file), idc or [])
    rows = [row for plan in found for row in _topics(plan)]
    emit({"topics": rows}, output, lambda: _topics_table(rows))
    if any(plan.differs for plan in found):
        raise typer.Exit(USAGE)


def _topics(plan: Plan) -> list[dict[str, Any]]:
    """One for each topic that is wanted."""
    rows = []
    for wanted in plan.wanted:
        now = plan.found.get(wanted.name)
        rows.append(
            {
                "idc": plan.idc,
                "topic": wanted.name,
                "state": "missing" if now is None else "there",
                "wanted": _shape(wanted, wanted),
                "found": _shape(now, wanted) if now else None,
                "differences": [
                    {"setting": it.setting, "found": it.is_now, "wanted": it.wanted}
                    for it in plan.differences
                    if it.topic == wanted.name
                ],
            }
        )
    return rows


def _shape(topic: Topic, wanted: Topic) -> dict[str, Any]:
    """With those of its settings that are wanted."""
    return {
        "partitions": topic.partitions,
        "replication_factor": topic.replication_factor,
        "settings": {name: topic.settings.get(name) for name in wanted.settings},
    }


def _topics_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("IDC", "TOPIC", "SETTING", "FOUND", "WANTED"):
        table.add_column(column, overflow="fold")
    for row in rows:
        if row["state"] == "missing":
            table.add_row(row["idc"], row["topic"], "", "missing", "made when the IDC starts")
        elif not row["differences"]:
            table.add_row(row["idc"], row["topic"], "", "as wanted", "")
        for it in row["differences"]:
            table.add_row(row["idc"], row["topic"], it["setting"], it["found"], it["wanted"])
    return table


@engines.command()
def install(
    names: Annotated[
        list[str], typer.Argument(metavar="ENGINE...", help=f"{', '.join(ENGINES)}, or all.")
    ],
) -> None:
    """Install engines at their pinned versions into the cache folder.

    They are built with Go, or fetched with Maven (Kafka). The folder is $IMCTL_ENGINES, else
    $XDG_CACHE_HOME/imctl/engines, else ~/.cache/imctl/engines.

    Example: imctl engines install etcd kafka
    """
    wanted = ENGINES if ALL in names else dict.fromkeys(names)
    failed = []
    for engine in [binaries.engine_named(name) for name in wanted]:
        try:
            _install(engine)
        except Failed as error:  # the others may well be got
            failed.append(str(error))
    if failed:
        raise Failed("; ".join(failed))


def _install(engine: Engine) -> None:
    version = binaries.pinned(engine)
    builder = binaries.need_tool(engine.builds_with, engine)
    target = binaries.place(engine, builder)
    if target.exists():
        print(f"{engine.name} {version} is already installed: {target}")
        _record(engine, target)
        return
    started = time.monotonic()
    tool = TOOLS[engine.builds_with].words
    with _progress(f"{engine.name} {version}", f"with {tool}, {engine.takes}") as progress:
        target = building.build(engine, builder, progress)
    seconds = time.monotonic() - started
    print(f"installed {engine.name} {version} in {seconds:.0f} s: {target}", flush=True)
    _record(engine, target)


def _record(engine: Engine, target: Path) -> None:
    """What runs on Java starts faster with its class archives, and without them as well."""
    if engine.runs_with != "java" or not binaries.find_tool("java") or recording.recorded(target):
        return
    try:
        with _progress(f"{engine.name}'s class archives", "half a minute") as progress:
            recording.record(target, progress)
    except (Failed, OSError) as error:
        print(f"note: {engine.name} will start more slowly: {error}", file=sys.stderr)


@contextmanager
def _progress(what: str, how: str) -> Iterator[building.Progress]:
    """A bar where it is known how much there is, else a running clock; one line off a terminal."""
    screen = console()
    if not screen.is_terminal:
        print(f"installing {what} ({how}) ...", flush=True)
        yield lambda doing, done, total: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=screen, transient=True) as bars:
        task = bars.add_task(f"{what} ({how})", total=None)

        def show(doing: str, done: int, total: int) -> None:
            count = f"{done} of {total}" if total else str(done or "")
            words = f"{what}: {doing} {count}".rstrip()
            bars.update(task, description=words, completed=done, total=total or None)

        yield show


class Listener(StrEnum):
    """Of Strimzi's, those that another cluster reaches without more, and the one for trying out."""

    LOADBALANCER = "loadbalancer"
    NODEPORT = "nodeport"
    CLUSTER_IP = "cluster-ip"


def _count(what: str) -> Any:
    return typer.Option(min=1, metavar="N", help=f"{what} [default: 3].", show_default=False)


def _disk(what: str) -> Any:
    words = f"Disk of each {what} [default: 500Gi]."
    return typer.Option(metavar="SIZE", help=words, show_default=False)


@engines.command()
def render(
    file: RegionFile,
    idc: Annotated[str, typer.Option(metavar="NAME", help="Of this IDC.")],
    size: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Brokers and stores as `imctl size --file FILE` works them out; other flags go "
            "before it.",
            show_default=False,
        ),
    ] = None,
    brokers: Annotated[int | None, _count("Kafka brokers")] = None,
    broker_disk: Annotated[str | None, _disk("broker")] = None,
    stores: Annotated[int | None, _count("TiKV stores, three or more")] = None,
    store_disk: Annotated[str | None, _disk("store")] = None,
    pd: Annotated[int | None, _count("Members of PD")] = None,
    storage_class: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of all disks [default: the cluster's own].", show_default=False
        ),
    ] = None,
    listener: Annotated[
        Listener, typer.Option(help="How other IDCs' MirrorMakers reach this IDC's Kafka.")
    ] = Listener.LOADBALANCER,
    secret: MirrorSecret = MIRROR_SECRET,
    tikv_version: Annotated[
        str, typer.Option(metavar="VERSION", help="Of PD and TiKV.")
    ] = TIKV_VERSION,
    tikv_tls: Annotated[
        bool,
        typer.Option(
            "--tikv-tls/--no-tikv-tls",
            help="Mutual TLS at PD and TiKV. An IDC speaks none itself: docs/tikv.md.",
        ),
    ] = True,
    output: Output = Format.TABLE,
) -> None:
    """Print what the engines of an IDC are on a Kubernetes cluster with Strimzi and TiDB Operator.

    A log on Kafka: Kafka, KafkaNodePool, KafkaTopic, and KafkaUser for each IDC that mirrors from
    it. A mirror by MirrorMaker 2: KafkaMirrorMaker2. A KV on TiKV: Cluster, PDGroup, TiKVGroup.
    For `kubectl apply -f -`, in a namespace of the IDC's own. No secret is ever printed; which
    Secrets must be there, docs/kafka.md and docs/tikv.md say.

    Exit status: 0 done, 2 the region file names no such engines, or not as they are made here.

    Example: imctl engines render r.yaml --idc fra --brokers 5
    """
    from imcore.region.load import load_region
    from imctl.commands.size import inputs
    from imctl.engines import rendering
    from imctl.engines.machines import Layout

    region = load_region(file)
    layout = Layout(storage_class=storage_class)
    if size is not None:
        layout = layout.for_workload(*inputs(size, {}))
    layout = replace(
        layout,
        brokers=layout.brokers.but(brokers, broker_disk, "--broker-disk"),
        stores=layout.stores.but(stores, store_disk, "--store-disk"),
        pd=layout.pd.but(pd, None, ""),
    )
    wishes = rendering.Wishes(layout, secret, listener.value, tikv_version, tikv_tls)
    emit_objects(rendering.objects(region, idc, wishes), output)
    if tikv_tls and region.idc(idc).engines.kv.tikv is not None:
        print(
            "note: PD and TiKV take TLS only, and an IDC's client has none: a proxy beside the IDC "
            "must speak it, or --no-tikv-tls where a mesh protects all (docs/tikv.md)",
            file=sys.stderr,
        )
