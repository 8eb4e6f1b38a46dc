"""replication: what MirrorMaker 2 is given, made from the region file; and a check of others'."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from imcore.errors import BadInput
from imctl.errors import USAGE
from imctl.group import Commands
from imctl.options import MIRROR_SECRET, Format, IdcName, MirrorSecret, Output, RegionFile
from imctl.output import emit, emit_objects

replication = typer.Typer(
    cls=Commands,
    help="Generate and check MirrorMaker 2 settings.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


class Target(StrEnum):
    PROPERTIES = "properties"
    STRIMZI = "strimzi"
    DEPLOYMENT = "deployment"


@replication.command()
def render(
    file: RegionFile,
    idc: IdcName,
    target: Annotated[Target, typer.Option(help="Kind of settings to print.")] = Target.PROPERTIES,
    secret: MirrorSecret = MIRROR_SECRET,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --target properties: write the settings and the files they need here, "
            "readable only by their owner.",
            file_okay=False,
            show_default=False,
        ),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Print the settings with which MirrorMaker 2 copies the other IDCs' logs into an IDC.

    properties: settings for dedicated mode (started with --clusters IDC). strimzi: a
    KafkaMirrorMaker2 of Strimzi's v1 API. deployment: a ConfigMap and a Deployment, for clusters
    without Strimzi. Secrets are never printed.

    Exit status: 0 done, 2 the region file has no flows into this IDC.

    Example: imctl replication render r.yaml fra --target strimzi
    """
    from imcore.region.load import load_region
    from imctl.engines import mm2, mm2_config, properties, strimzi

    region = load_region(file)
    flows = mm2_config.flows_into(region, idc)
    if out is not None and target is not Target.PROPERTIES:
        raise BadInput("--out: expected it only with --target properties; redirect the output")
    place = (out or mm2.FOLDER).absolute()
    credentials = mm2_config.credentials_of(region, idc, mm2.secrets_file(place))
    if target is Target.PROPERTIES:
        if out is not None:
            mirror = mm2.MirrorMaker(
                place, flows, credentials, mm2_config.password_file(region, idc)
            )
            mirror.prepare()
            print(f"{mirror.settings_file}: {len(flows.sources)} flows into {idc}")
            return
        found = mm2_config.settings(flows, credentials)
        if output is Format.TABLE:
            print(properties.text(found), end="")
        else:
            emit(found, output, str)
        return
    objects = (
        [strimzi.strimzi(flows, credentials, secret)]
        if target is Target.STRIMZI
        else strimzi.deployment(flows, credentials, secret)
    )
    emit_objects(objects, output)


@replication.command()
def check(
    file: RegionFile,
    idc: IdcName,
    settings: Annotated[Path, typer.Argument(metavar="SETTINGS", help="A properties file.")],
    output: Output = Format.TABLE,
) -> None:
    """Check whether edited MirrorMaker 2 settings still keep the promises.

    Exit status: 0 they do, 2 they do not; each problem names its setting.

    Example: imctl replication check r.yaml fra mm2.properties
    """
    from imcore.region.load import load_region
    from imctl.engines import mm2_check, mm2_config, properties

    flows = mm2_config.flows_into(load_region(file), idc)
    try:
        text = settings.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "something that is not UTF-8"
        raise BadInput(f"{settings}: expected a properties file, got {why}") from error
    wrong = mm2_check.problems(properties.parsed(text), flows)
    if output is Format.TABLE:
        for problem in wrong:
            print(f"{settings}: {problem}", file=sys.stderr)
        if not wrong:
            print(f"{settings}: valid; {len(flows.sources)} flows into {idc}")
    else:
        emit({"problems": wrong}, output, str)
    if wrong:
        raise typer.Exit(USAGE)
