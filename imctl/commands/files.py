"""validate, check, pki: commands that work on files alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from imctl.errors import USAGE
from imctl.group import Commands
from imctl.options import Format, Output, RegionFile
from imctl.output import emit


def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Region files.")],
) -> None:
    """Check region files: types, fields and the rules between them, each error with its line.

    Example: imctl validate regions/*.yaml
    """
    from imcore.region.load import check_region

    wrong = 0
    for file in files:
        found = check_region(file)
        for problem in found.problems:
            print(problem, file=sys.stderr)
        wrong += len(found.problems)
        if found.region is not None:
            spec = found.region.spec
            witness = " and a witness" if spec.witness else ""
            print(f"{file}: valid; {len(spec.idcs)} IDCs{witness}, {len(spec.geo.shards)} shards")
    if wrong:
        raise typer.Exit(USAGE)


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A history, as JSON lines.")],
    output: Output = Format.TABLE,
) -> None:
    """Judge a recorded history: nothing missing, nothing twice, one order (docs/history.md).

    Exit status: 0 every promise held, 1 violations, 2 no history, or one that ends too early.

    Example: imctl check build/demo/history.jsonl
    """
    from imcore.checker import check_file

    report = check_file(file)
    emit(report.as_json() | {"sentence": report.sentence()}, output, lambda: _verdict(report))
    raise typer.Exit(report.exit_code)


def _verdict(report: Any) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row(report.sentence())
    for kind, examples in sorted(report.examples.items()):
        table.add_row(f"{kind}: {report.violations[kind]}")
        for example in examples:
            table.add_row(f"  {example}")
    return table


pki = typer.Typer(
    cls=Commands,
    help="Make and show the region's certificates.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@pki.command("init")
def pki_init(
    file: RegionFile,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder [default: var/REGION/pki].", show_default=False),
    ] = None,
) -> None:
    """Make what is missing: a CA, a certificate for each IDC, the region keys.

    Nothing that exists is overwritten.

    Example: imctl pki init regions/three-idc.yaml
    """
    from imcore import pki as core
    from imcore.region.load import load_region
    from imcore.runtime import SystemClock
    from imctl.target.local import default_data, pki_names

    region = load_region(file)
    folder = out or default_data(region) / "pki"
    made = core.init(folder, pki_names(region), core.utc_now(SystemClock().wall_ms()))
    print(f"{folder}: made {', '.join(made)}" if made else f"{folder}: nothing was missing")


@pki.command("show")
def pki_show(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]", help="The folder [default: the deployment's].", show_default=False
        ),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Show the certificates of a folder: names, expiry, fingerprint. Never a key.

    A ! stands behind the days of what expires within 30.

    Example: imctl pki show var/three-idc/pki
    """
    from imcore import pki as core
    from imcore.certificates import WARN_DAYS, days_left
    from imcore.runtime import SystemClock
    from imctl import deployment

    now = core.utc_now(SystemClock().wall_ms())
    infos = core.show(folder or deployment.find(None).pki)
    rows = [
        {
            "name": info.name,
            "hosts": list(info.hosts),
            "expires": f"{info.expires:%Y-%m-%d}",
            "days_left": days_left(info.expires, now),
            "fingerprint": info.fingerprint,
        }
        for info in infos
    ]

    def table() -> Table:
        view = Table("NAME", "EXPIRES", "DAYS LEFT", "SHA-256", "HOSTS", box=None, pad_edge=False)
        for info in infos:
            left = days_left(info.expires, now)
            view.add_row(
                info.name,
                f"{info.expires:%Y-%m-%d}",
                f"{left} !" if left < WARN_DAYS else str(left),
                info.fingerprint[:16],
                ", ".join(info.hosts),
            )
        return view

    emit(rows, output, table)


@pki.command("rotate")
def pki_rotate(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="As `imctl pki show` lists them.")
    ],
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="The folder [default: the deployment's].", show_default=False),
    ] = None,
) -> None:
    """Make a new key and certificate for each name, for the same hosts.

    Gateways, ipconf and gRPC servers take it with their next connection, without a restart; what
    is connected stays so. Towards others a process shows it with its next call.

    Example: imctl pki rotate fra
    """
    from imcore import pki as core
    from imcore.runtime import SystemClock
    from imctl import deployment

    chosen = folder or deployment.find(None).pki
    for info in core.rotate(chosen, names, core.utc_now(SystemClock().wall_ms())):
        print(f"{info.name}: a new certificate until {info.expires:%Y-%m-%d}")


keys = typer.Typer(
    cls=Commands,
    help="Rotate the region keys, which sign tokens, places and clocks.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)
pki.add_typer(keys, name="keys")

KeysDir = Annotated[
    Path | None,
    typer.Option("--dir", help="The pki folder [default: the deployment's].", show_default=False),
]
KeyId = Annotated[int, typer.Argument(metavar="ID", help="As `imctl pki keys show` lists it.")]


def _keys_folder(folder: Path | None) -> Path:
    from imctl import deployment

    return folder or deployment.find(None).pki


@keys.command("show")
def keys_show(folder: KeysDir = None, output: Output = Format.TABLE) -> None:
    """Which region keys there are, and which one signs. Never a key.

    Example: imctl pki keys show
    """
    from imcore import pki as core

    found = core.key_ids(_keys_folder(folder))
    rows = [
        {"id": number, "use": "signs, verifies" if number == found.current else "verifies"}
        for number in found.ids
    ]

    def table() -> Table:
        view = Table("ID", "USE", box=None, pad_edge=False)
        for row in rows:
            view.add_row(str(row["id"]), str(row["use"]))
        return view

    emit(rows, output, table)


@keys.command("add")
def keys_add(folder: KeysDir = None) -> None:
    """Step 1 of 3: a new key that verifies and does not sign yet.

    Running IDCs take it within seconds; `status -o json` shows under region_keys who has it.

    Example: imctl pki keys add
    """
    from imcore import pki as core

    number = core.add_key(_keys_folder(folder))
    print(f"key {number} verifies; `imctl pki keys use {number}` once every IDC has it")


@keys.command("use")
def keys_use(number: KeyId, folder: KeysDir = None) -> None:
    """Step 2 of 3: sign with this key. What others signed stays good.

    Example: imctl pki keys use 2
    """
    from imcore import pki as core

    core.use_key(_keys_folder(folder), number)
    print(f"key {number} signs; retire the others when what they signed has expired")


@keys.command("retire")
def keys_retire(number: KeyId, folder: KeysDir = None) -> None:
    """Step 3 of 3: what this key signed is good no more. Connected clients stay connected.

    Wait until its tokens have expired and outboxes are empty: a client with such a token is turned
    away, and a message whose place it signed takes a new place.

    Example: imctl pki keys retire 1
    """
    from imcore import pki as core

    core.retire_key(_keys_folder(folder), number)
    print(f"key {number} verifies no more")
