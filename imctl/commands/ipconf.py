"""ipconf lookup: where a client at an address would be sent."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from typing import Annotated, Any

import aiohttp
import typer
from rich.console import Group, RenderableType
from rich.table import Table

from imcore.errors import BadInput, Code, Refused, Unavailable
from imcore.region.rules import ipconf_addresses
from imcore.runtime import SystemClock
from imcore.tls import client_ssl_context
from imctl import deployment
from imctl.group import Commands
from imctl.identity import token_for
from imctl.options import Data, Format, Output
from imctl.output import emit
from imctl.target.local import Local

ipconf = typer.Typer(
    cls=Commands,
    help="Show which IDCs and gateways a client would be given.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@ipconf.callback()
def group() -> None:
    """Show which IDCs and gateways a client would be given."""


@ipconf.command()
def lookup(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="A client's IP address.")],
    uid: Annotated[
        str, typer.Option(metavar="UID", help="The user; weights are applied by uid.")
    ] = "lookup",
    network: Annotated[
        str, typer.Option(metavar="NETWORK", help="wifi, cellular, wired or unknown.")
    ] = "unknown",
    idc: Annotated[
        str | None, typer.Option(metavar="IDC", help="The IDC whose ipconf to ask [default: any].")
    ] = None,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Show the shard, IDCs and gateways that a client at this address would be given.

    Example: imctl ipconf lookup 203.0.113.9
    """
    target = deployment.find(data)
    try:
        ip_address(address)
    except ValueError:
        raise BadInput(f"ADDRESS: expected an IP address, got {address!r}") from None
    known = [each.name for each in target.region.spec.idcs]
    if idc is not None and idc not in known:
        raise BadInput(f"--idc: expected one of {', '.join(known)}, got {idc!r}")
    document = asyncio.run(_ask_any(target, [idc] if idc else known, address, uid, network))
    emit(document, output, lambda: _view(document, address))


async def _ask_any(
    target: Local, names: list[str], address: str, uid: str, network: str
) -> dict[str, Any]:
    """The first IDC that answers. Raises Unavailable, Refused."""
    headers = {
        "Authorization": f"Bearer {token_for(target, uid, 'imctl', SystemClock(), 60, admin=True)}",
        "X-Im-Address": address,
    }
    timeout = aiohttp.ClientTimeout(total=2)
    connector = aiohttp.TCPConnector(ssl=client_ssl_context(target.pki / "ca.pem"))
    reasons = []
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=connector
    ) as session:
        idcs = [target.region.idc(name) for name in names]
        for name, address in ((i.name, at) for i in idcs for at in ipconf_addresses(i)):
            url = f"https://{address}/v1/gateways"
            try:
                async with session.get(url, params={"network": network}) as response:
                    document: dict[str, Any] = await response.json()
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                reasons.append(f"{name}: {error or 'no answer in 2 s'}")
                continue
            if response.status == 200:
                return {"answered_by": name} | document
            if response.status < 500:
                message = document.get("error", {}).get("message", response.reason)
                raise Refused(Code.BAD_REQUEST, f"{name}: {message}")
            reasons.append(f"{name}: {document.get('error', {}).get('message', response.status)}")
    raise Unavailable(f"no ipconf answered ({'; '.join(reasons)})")


def _view(document: dict[str, Any], address: str) -> RenderableType:
    stale = ", STALE" if document.get("stale") else ""
    head = (
        f"{address} -> shard {document['shard']}, IDCs {', '.join(document['idcs'])} "
        f"(policy epoch {document['policy_epoch']}{stale}, by {document['answered_by']})"
    )
    table = Table("GATEWAY", "IDC", "ADDRESS", "SCORE", box=None, pad_edge=False)
    for row in document["gateways"]:
        address_of = f"{row['host']}:{row['port']}"
        table.add_row(row["gateway"], row["idc"], address_of, f"{row['score']:.2f}")
    return Group(head, table)
