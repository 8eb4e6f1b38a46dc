"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class By(StrEnum):
    """Who asks the registries for a move."""

    OPERATOR = "operator"
    REGISTRIES = "registries"


Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="The deployment's folder [default: $IMCTL_DATA, else the only one in ./var].",
        file_okay=False,
        show_default=False,
    ),
]
FileData = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="The deployment's folder [default: $IMCTL_DATA, else var/REGION].",
        file_okay=False,
        show_default=False,
    ),
]
Output = Annotated[Format, typer.Option("-o", "--output", help="Output format.")]
Engines = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="Engines to start for each IDC, comma-separated: etcd (registry), kafka (log, with "
        "MirrorMaker 2 as the mirror unless the region file has `mirror: embedded`), tikv (KV: PD "
        "and the TiKV protocol mock), s3 (files, if the region file has `media`) [default: as in "
        "the region file].",
        show_default=False,
    ),
]
RegionFile = Annotated[Path, typer.Argument(metavar="FILE", help="The region file.")]
SitesFile = Annotated[
    Path | None,
    typer.Option(
        "--sites",
        metavar="FILE",
        help="On Kubernetes: the sites file, which says where each part runs [default: the one "
        "in use].",
        show_default=False,
    ),
]
IdcName = Annotated[str, typer.Argument(metavar="IDC", help="Name of an IDC.")]
MIRROR_SECRET = "kafka-client"  # noqa: S105 - the name of a Secret, not a secret
MirrorSecret = Annotated[
    str,
    typer.Option(
        "--secret",
        metavar="NAME",
        help="Kubernetes: name of the Secret with ca.crt, tls.crt, tls.key and password.",
    ),
]
