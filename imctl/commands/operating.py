"""operator run, crds: what runs in a Kubernetes cluster, and the kinds that it knows."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
import yaml

from imcore.errors import BadInput
from imcore.runtime import SystemClock
from imctl.api.crd import definition
from imctl.api.kinds import KINDS
from imctl.capacity.figures import Figures
from imctl.group import Commands

operator = typer.Typer(
    cls=Commands,
    help="Run the Kubernetes operator; print the kinds that it knows.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@operator.command("run")
def run(
    namespace: Annotated[
        list[str] | None,
        typer.Option(help="Work in this namespace; may be given again [default: all]."),
    ] = None,
    lease_namespace: Annotated[
        str,
        typer.Option(
            help="Where the Lease is, by which one operator of all is active "
            "[default: $POD_NAMESPACE, or default].",
            show_default=False,
        ),
    ] = "",
    context: Annotated[
        str, typer.Option(help="Of the kubeconfig, outside a pod [default: the current one].")
    ] = "",
    audit: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="For the audit logs of the traffic that it moves."),
    ] = Path("var/operator"),
    drills: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Run DrillRuns, with this folder for what is known of them while they run "
            "[default: none are run].",
            show_default=False,
        ),
    ] = None,
    webhook: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Answer the API server there, by HTTPS at /validate, whether a Region is right "
            "[default: not at all].",
            show_default=False,
        ),
    ] = "",
    webhook_certificate: Annotated[
        Path, typer.Option(metavar="FOLDER", help="With tls.crt and tls.key, for --webhook.")
    ] = Path("/etc/imctl/webhook"),
) -> None:
    """Bring IDC and Witness objects to this cluster and keep them so, until SIGTERM.

    Moves of traffic are asked for as TrafficOperation objects say, drills are run as DrillRun
    objects say.

    Of several, one is active: it holds a Lease. The others wait for it.

    Exit status: 0 stopped, 1 the lease was lost or there is no cluster.

    Example: imctl operator run --namespace im-fra
    """
    from imctl.reconcile.run import Webhook  # its libraries take half a second
    from imctl.reconcile.run import run as run_operator

    hook = None
    if webhook:
        host, separator, port = webhook.rpartition(":")
        if not separator or not port.isdecimal():
            raise BadInput(f"--webhook: expected HOST:PORT, got {webhook!r}")
        hook = Webhook(host, int(port), webhook_certificate)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)  # else a line for each event
    text = (files("imctl.capacity") / "figures.yaml").read_text(encoding="utf-8")
    identity = f"{socket.gethostname()}_{secrets.token_hex(4)}"
    where = lease_namespace or os.environ.get("POD_NAMESPACE") or "default"
    figures = Figures.of(yaml.safe_load(text))
    clock = SystemClock()
    namespaces = namespace or []
    asyncio.run(
        run_operator(identity, where, namespaces, figures, clock, audit, context, hook, drills)
    )


@operator.command("crds")
def crds() -> None:
    """Print the CRDs of this version, for `kubectl apply --server-side -f -`.

    Example: imctl operator crds
    """
    print(yaml.safe_dump_all([definition(kind) for kind in KINDS], sort_keys=False), end="")
