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
    help="Run the Kubernetes operator, or print its CRDs.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@operator.command("run")
def run(
    namespace: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Namespace to watch; repeatable [default: all]."),
    ] = None,
    lease_namespace: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Namespace of the Lease that elects the active operator [default: "
            "$POD_NAMESPACE, else `default`].",
            show_default=False,
        ),
    ] = "",
    cluster_lease_namespace: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Without --namespace: namespace of the second Lease, which lets one operator work "
            "in all namespaces. Must be the same for all operators of the cluster.",
        ),
    ] = "default",
    context: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Context of the kubeconfig, outside a pod [default: the current one].",
            show_default=False,
        ),
    ] = "",
    audit: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Where to keep audit logs of traffic moves."),
    ] = Path("var/operator"),
    drills: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Run DrillRuns, and keep their state in this folder [default: do not run them].",
            show_default=False,
        ),
    ] = None,
    webhook: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Serve an admission webhook for Regions, Drills and DrillRuns at this address, "
            "over HTTPS at /validate [default: none].",
            show_default=False,
        ),
    ] = "",
    webhook_certificate: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder with tls.crt and tls.key, for --webhook.")
    ] = Path("/etc/imctl/webhook"),
    metrics: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Serve /livez, /readyz and /metrics at this address, over HTTP [default: none].",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Run the operator until SIGTERM.

    It runs the pods of IDC, IMCluster, GatewayCluster, RouteCluster and Witness objects, moves
    traffic for TrafficOperation objects, runs drills for Drill and DrillRun objects (see --drills),
    and reports the status of Region, Replication and GeoPolicy objects. Of several operators only
    the one that holds the Lease is active. Without --namespace it also needs a second Lease, so
    that only one in the cluster works in all namespaces.

    Exit status: 0 stopped, 1 the lease was lost or there is no cluster.

    Example: imctl operator run --namespace im-fra
    """
    from imctl.reconcile.run import Address, Webhook  # its libraries take half a second
    from imctl.reconcile.run import run as run_operator

    def address(option: str, text: str) -> Address:
        host, separator, port = text.rpartition(":")
        if not separator or not port.isdecimal():
            raise BadInput(f"{option}: expected HOST:PORT, got {text!r}")
        return Address(host, int(port))

    hook = Webhook(address("--webhook", webhook), webhook_certificate) if webhook else None
    shown = address("--metrics", metrics) if metrics else None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)  # else a line for each event
    text = (files("imctl.capacity") / "figures.yaml").read_text(encoding="utf-8")
    identity = f"{socket.gethostname()}_{secrets.token_hex(4)}"
    where = lease_namespace or os.environ.get("POD_NAMESPACE") or "default"
    figures = Figures.of(yaml.safe_load(text))
    clock = SystemClock()
    namespaces = namespace or []
    running = run_operator(
        identity, where, cluster_lease_namespace, namespaces, figures, clock, audit, context,
        hook, drills, shown,
    )  # fmt: skip
    asyncio.run(running)


@operator.command("crds")
def crds() -> None:
    """Print the CRDs of this version, for `kubectl apply --server-side -f -`.

    Example: imctl operator crds
    """
    print(yaml.safe_dump_all([definition(kind) for kind in KINDS], sort_keys=False), end="")
