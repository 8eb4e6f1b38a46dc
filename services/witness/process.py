"""Run the witness: a registry and a vote, without traffic."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path

import uvloop

from imcore import auditfile, logs
from imcore.errors import BadInput, ImError
from imcore.region.load import load_region
from services.node.outside import Machine
from services.witness.witness import Witness


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.witness", description=__doc__)
    parser.add_argument("--region", type=Path, required=True, metavar="FILE", help="region file")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="data folder")
    parser.add_argument("--pki", type=Path, required=True, metavar="DIR", help="certificates")
    parser.add_argument(
        "--links", type=Path, metavar="FILE",
        help="JSON file with the address at which to dial each IDC [default: its endpoints]",
    )  # fmt: skip
    parser.add_argument(
        "--audit", type=Path, metavar="FILE",
        help="audit log of its decisions [default: audit.jsonl in the data folder]",
    )  # fmt: skip
    parser.add_argument(
        "--listen", default="", metavar="HOST",
        help="address to listen on; others still dial the endpoints [default: the host of each "
        "endpoint]",
    )  # fmt: skip
    return parser.parse_args(argv)


def _links(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        document = json.loads(path.read_text())
        return {str(name): str(address) for name, address in document.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise BadInput(f"{path}: expected a JSON object of addresses by IDC: {error}") from error


async def _serve(options: argparse.Namespace) -> None:
    region = load_region(options.region)
    name = region.spec.witness.name if region.spec.witness else ""
    witness = Witness(
        region,
        options.data,
        _links(options.links),
        Machine(options.pki, name),
        options.audit,
        options.listen,
        options.pki,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, witness.stop)
    witness.audit_file.parent.mkdir(parents=True, exist_ok=True)
    with auditfile.kept(witness.audit_file, witness.name):
        await witness.run()


def main(argv: list[str]) -> int:
    logs.set_up()
    options = _arguments(argv)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(options))
    except (ImError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
