"""kick: what an operator does to a user of the service."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from imcore.errors import Unavailable
from imctl import admin, deployment
from imctl.options import Data
from imctl.target.base import Target


def kick(
    uid: Annotated[str, typer.Argument(metavar="UID", help="The user.")],
    device: Annotated[
        str, typer.Argument(metavar="[DEVICE]", help="One device [default: all of the user's].")
    ] = "",
    data: Data = None,
) -> None:
    """Disconnect a user's devices in every IDC.

    Returns once a second IDC has stored the request. The clients stop with the reason `kicked`.
    Their tokens remain valid: a new client may connect.

    Example: imctl kick ann phone
    """
    asyncio.run(_kick(deployment.find(data), uid, device))
    print(f"{uid}: {device or 'every device'} is disconnected")


async def _kick(target: Target, uid: str, device: str) -> None:
    """By the first IDC that does it: asking twice is harmless. Raises Unavailable, of the last."""
    failed: Unavailable | None = None
    for idc in target.region.spec.idcs:
        try:
            return await admin.kick(target, idc.name, uid, device)
        except Unavailable as error:
            failed = error
    assert failed is not None
    raise failed
