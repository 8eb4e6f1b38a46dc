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


Data = Annotated[
    Path | None,
    typer.Option(
        help="The deployment's folder [default: $IMCTL_DATA, or the one below ./var].",
        file_okay=False,
        show_default=False,
    ),
]
Output = Annotated[Format, typer.Option("-o", "--output", help="How to print the result.")]
Engines = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="Run these beside each IDC: etcd (registry), kafka (log, and MirrorMaker 2 as the "
        "mirror unless the file says `mirror: embedded`), tikv (KV: PD and the TiKV-protocol "
        "mock), s3 (files, where the file has `media`) [default: as the file says].",
        show_default=False,
    ),
]
RegionFile = Annotated[Path, typer.Argument(metavar="FILE", help="The region file.")]
SitesFile = Annotated[
    Path | None,
    typer.Option(
        "--sites",
        metavar="SITES",
        help="On Kubernetes: where each part runs, and with what [default: as it runs].",
        show_default=False,
    ),
]
IdcName = Annotated[str, typer.Argument(metavar="IDC", help="The name of an IDC.")]
MIRROR_SECRET = "kafka-client"  # noqa: S105 - the name of a Secret, not a secret
MirrorSecret = Annotated[
    str,
    typer.Option(
        "--secret",
        help="Kubernetes: the Secret with ca.crt, tls.crt, tls.key and password.",
    ),
]
