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
    """Check region files.

    Checks types, fields and the rules between fields; each error names its line.

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
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A history (JSON lines).")],
    output: Output = Format.TABLE,
) -> None:
    """Judge a recorded history of what clients saw.

    Looks for messages that are missing, duplicated or out of order, and more (docs/history.md).

    Exit status: 0 every promise held, 1 violations, 2 not a complete history.

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
    help="Create, show and rotate certificates and region keys.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


PkiDir = Annotated[
    Path | None,
    typer.Option(
        "--pki",
        metavar="DIR",
        help="The pki folder [default: the deployment's].",
        show_default=False,
    ),
]


@pki.command("init")
def pki_init(
    file: RegionFile,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where to write [default: var/REGION/pki].", show_default=False
        ),
    ] = None,
) -> None:
    """Create the missing parts: a CA, a certificate for each IDC and role, the region keys.

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
    print(f"{folder}: created {', '.join(made)}" if made else f"{folder}: nothing was missing")


@pki.command("show")
def pki_show(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]", help="The pki folder [default: the deployment's].", show_default=False
        ),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Show certificates: name, expiry, fingerprint and hosts. Private keys are never shown.

    A ! marks a certificate that expires within 30 days.

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
        list[str],
        typer.Argument(metavar="NAME...", help="Names of certificates (see `imctl pki show`)."),
    ],
    folder: PkiDir = None,
) -> None:
    """Create a new key and certificate for each name, for the same hosts.

    Running gateways, ipconf and gRPC servers use it from their next connection on, without a
    restart; open connections stay open. As a client, a process uses it from its next call on.

    Example: imctl pki rotate fra
    """
    from imcore import pki as core
    from imcore.runtime import SystemClock
    from imctl import deployment

    chosen = folder or deployment.find(None).pki
    for info in core.rotate(chosen, names, core.utc_now(SystemClock().wall_ms())):
        print(f"{info.name}: new certificate, valid until {info.expires:%Y-%m-%d}")


keys = typer.Typer(
    cls=Commands,
    help="Rotate the region keys, which sign tokens, places and clocks.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)
pki.add_typer(keys, name="keys")

KeyId = Annotated[int, typer.Argument(metavar="ID", help="A key id (see `imctl pki keys show`).")]


def _keys_folder(folder: Path | None) -> Path:
    from imctl import deployment

    return folder or deployment.find(None).pki


@keys.command("show")
def keys_show(folder: PkiDir = None, output: Output = Format.TABLE) -> None:
    """Show the ids of the region keys, and which key signs. The keys are never shown.

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
def keys_add(folder: PkiDir = None) -> None:
    """Step 1 of 3: add a key that verifies, but does not sign yet.

    Running IDCs load it within seconds; region_keys in `imctl status -o json` shows which have it.

    Example: imctl pki keys add
    """
    from imcore import pki as core

    number = core.add_key(_keys_folder(folder))
    print(f"key {number} verifies; `imctl pki keys use {number}` once every IDC has it")


@keys.command("use")
def keys_use(number: KeyId, folder: PkiDir = None) -> None:
    """Step 2 of 3: sign with this key. Signatures of the other keys remain valid.

    Example: imctl pki keys use 2
    """
    from imcore import pki as core

    core.use_key(_keys_folder(folder), number)
    print(f"key {number} signs; retire the other keys once everything they signed has expired")


@keys.command("retire")
def keys_retire(number: KeyId, folder: PkiDir = None) -> None:
    """Step 3 of 3: reject what this key signed. Connected clients stay connected.

    Wait until its tokens have expired and outboxes are empty: a client with such a token is
    rejected, and a message whose place the key signed gets a new place.

    Example: imctl pki keys retire 1
    """
    from imcore import pki as core

    core.retire_key(_keys_folder(folder), number)
    print(f"key {number} no longer verifies")
