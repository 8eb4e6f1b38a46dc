"""Run the process of one IDC, with all roles or some of them."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from pathlib import Path

import uvloop

from imcore import auditfile, logs
from imcore.errors import BadInput, ImError
from services.gateway.handover import VARIABLE, Handover, taken
from services.node.config import NodeConfig, load
from services.node.front import FrontNode
from services.node.ipconf import IpconfNode
from services.node.node import Node
from services.node.open_files import raise_limit
from services.node.roles import Roles, parse_roles
from services.node.route import RouteNode

# The default counts as garbage what is only in flight (700 objects: a few messages): it then
# walks everything young all the time, 4 % of the process, and old objects in the middle of it.
COLLECT = (20_000, 20, 50)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.node", description=__doc__)
    parser.add_argument("--region", type=Path, required=True, metavar="FILE", help="region file")
    parser.add_argument("--idc", required=True, metavar="NAME", help="name of the IDC")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="data folder")
    parser.add_argument(
        "--pki", type=Path, required=True, metavar="DIR", help="certificates and region keys"
    )
    parser.add_argument(
        "--links", type=Path, metavar="FILE",
        help="JSON file with the address at which to dial each peer [default: its endpoints]",
    )  # fmt: skip
    parser.add_argument(
        "--faults", action="store_true", help="allow fault injection (clock, disk, links)"
    )
    parser.add_argument(
        "--plain-clients",
        action="store_true",
        help="for benchmarks: gateways without TLS, on a loopback address only",
    )
    parser.add_argument(
        "--audit", type=Path, metavar="FILE",
        help="audit log of its decisions [default: audit.jsonl in the data folder]",
    )  # fmt: skip
    parser.add_argument(
        "--roles", default="all", metavar="ROLES",
        help="all; gateway,state; ipconf; route; im,route,control; or im,route,ipconf,control "
        "[default: all]",
    )  # fmt: skip
    parser.add_argument(
        "--instance", type=int, default=1, metavar="N",
        help="with --roles gateway,state, ipconf or route: its number in the IDC; "
        "with --standby: of this core, another one for each data folder [default: 1]",
    )  # fmt: skip
    parser.add_argument(
        "--gateway-port", type=int, default=0, metavar="PORT",
        help="with --roles gateway,state: port to listen on instead of the gateway's own port, "
        "which others still dial [default: the gateway's own]",
    )  # fmt: skip
    parser.add_argument(
        "--monitor-port", type=int, default=0, metavar="PORT",
        help="with --roles gateway,state, ipconf or route: port for probes and metrics over HTTPS "
        "[default: none]",
    )  # fmt: skip
    parser.add_argument(
        "--route-port", type=int, default=0, metavar="PORT",
        help="with --roles route: port to listen on for gateways",
    )  # fmt: skip
    parser.add_argument(
        "--advertise", default="", metavar="HOST:PORT",
        help="with --roles route: where gateways find it [default: the host of the peer endpoint, "
        "and --route-port]",
    )  # fmt: skip
    parser.add_argument(
        "--leave", action="store_true",
        help="with --roles gateway,state: on SIGTERM, move clients to other gateways first",
    )  # fmt: skip
    parser.add_argument(
        "--standby", action="store_true",
        help="with --roles im,route,ipconf,control: wait while another core of the IDC serves, and "
        "take its place when it is gone",
    )  # fmt: skip
    parser.add_argument(
        "--listen", default="", metavar="HOST",
        help="address to listen on; others still dial the endpoints [default: the host of each "
        "endpoint]",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true", help="validate the flags and their files, then exit"
    )
    return parser.parse_args()


async def _serve(config: NodeConfig, handover: Handover | None) -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    while not told.is_set():
        node: FrontNode | IpconfNode | RouteNode | Node
        if config.roles is Roles.FRONT:
            node = FrontNode(config, handover)
            handover = None
            loop.add_signal_handler(signal.SIGHUP, node.restart)
        elif config.roles is Roles.IPCONF:
            node = IpconfNode(config)
            loop.add_signal_handler(signal.SIGHUP, node.restart)
        elif config.roles is Roles.ROUTE:
            node = RouteNode(config)
        else:
            node = Node(config)

        def stop(running: FrontNode | IpconfNode | RouteNode | Node = node) -> None:
            told.set()
            if isinstance(running, FrontNode) and config.leaves:
                running.leave()
            else:
                running.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        await node.run()
        if not node.again:
            return


def main() -> int:
    logs.set_up()
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    # It repeats what is not HTTP, and so whatever a stranger or a broken client sent, tokens too;
    # errors of our own handlers are logged by ipconf itself.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    options = _arguments()
    try:
        config = load(
            options.region, options.idc, options.data, options.pki, options.links,
            options.faults, options.plain_clients, options.audit, options.listen,
            parse_roles(options.roles), options.instance, options.gateway_port,
            options.monitor_port, options.leave, options.standby, options.route_port,
            options.advertise,
        )  # fmt: skip
        if options.check:
            return 0
        handover = taken()
        if handover is not None and config.roles is not Roles.FRONT:
            raise BadInput(f"{VARIABLE}: only a process with --roles gateway,state takes over")
        raise_limit()
        config.audit_file.parent.mkdir(parents=True, exist_ok=True)
        with (
            auditfile.kept(config.audit_file, config.audit_writer),
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(_serve(config, handover))
    except (ImError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
