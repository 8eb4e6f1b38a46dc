"""Emulate the WAN links of a region file."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import signal
import sys
from pathlib import Path

import grpc.aio
import uvloop

from imcore import logs
from imcore.errors import BadInput
from imcore.proto import peer_pb2_grpc as rpc
from imcore.region.load import load_region
from imcore.region.rules import split
from imcore.tls import SERVER_OPTIONS, grpc_server_credentials
from services.linkproxy.admin import AdminService
from services.linkproxy.proxy import LinkProxy, Pair, Route, endpoints, link_specs
from services.linkproxy.relay import HostPort
from services.node.authorize import Authorizer

log = logging.getLogger("im.linkproxy")


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.linkproxy", description=__doc__)
    parser.add_argument("--region", type=Path, required=True, metavar="FILE", help="region file")
    parser.add_argument("--pki", type=Path, required=True, metavar="DIR", help="certificates")
    parser.add_argument(
        "--admin", required=True, metavar="HOST:PORT", help="address of the fault API"
    )
    parser.add_argument(
        "--listen",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON file to write, with the address that each IDC dials for each other IDC; "
        "addresses already in it are kept",
    )
    parser.add_argument(
        "--routes",
        type=Path,
        metavar="FILE",
        help='JSON file of further routes: [{"source": IDC, "target": IDC, "listen": HOST:PORT, '
        '"address": HOST:PORT}]; what source sends to `listen` goes to `address` over the link',
    )
    parser.add_argument("--faults", action="store_true", help="allow fault injection")
    return parser.parse_args(argv)


def read_listen(path: Path) -> dict[Pair, HostPort]:
    """The addresses of an earlier run; empty when there was none that can be read."""
    try:
        document = json.loads(path.read_text())
        return {(a, b): split(text) for a, row in document.items() for b, text in row.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def read_routes(path: Path | None) -> list[Route]:
    """Raises BadInput."""
    if path is None:
        return []
    try:
        return [
            Route(row["source"], row["target"], split(row["listen"]), split(row["address"]))
            for row in json.loads(path.read_text())
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"--routes {path}: expected a list of routes, got {error!r}") from error


def write_listen(path: Path, bound: dict[Pair, HostPort]) -> None:
    """``{"fra": {"iad": "127.0.0.1:PORT"}}``: fra dials iad there. Replaced whole: whoever waits
    for the file reads all of it."""
    document: dict[str, dict[str, str]] = {}
    for (source, target), (host, port) in bound.items():
        document.setdefault(source, {})[target] = f"{host}:{port}"
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(path)


async def serve(options: argparse.Namespace) -> None:
    region = load_region(options.region)
    stop = asyncio.Event()
    routes = read_routes(options.routes)
    proxy = LinkProxy(endpoints(region), link_specs(region), random.Random(), routes)
    server = grpc.aio.server(interceptors=[Authorizer(())], options=SERVER_OPTIONS)
    rpc.add_AdminServicer_to_server(AdminService(proxy, options.faults, stop.set), server)
    try:
        server.add_secure_port(options.admin, grpc_server_credentials(options.pki, "linkproxy"))
        bound = await proxy.listen(read_listen(options.listen))
    except (OSError, RuntimeError) as error:
        raise BadInput(f"the link proxy cannot listen: {error}") from error
    await server.start()
    write_listen(options.listen, bound)
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    log.info("Relaying %d directed links of %s.", len(bound), region.metadata.name)
    await stop.wait()
    await proxy.close()
    await server.stop(0.2)


def main() -> None:
    logs.set_up()
    options = arguments(sys.argv[1:])
    try:
        uvloop.run(serve(options))
    except BadInput as error:
        raise SystemExit(f"error: {error}") from error
