"""kick: what an operator does to a user of the service."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from imcore.errors import OutcomeUnknown, Unavailable
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
    """By the first IDC that does it: asking twice is harmless, so one that says nothing is passed
    over too. Raises Unavailable, OutcomeUnknown: of the last."""
    failed: Unavailable | OutcomeUnknown | None = None
    for idc in target.region.spec.idcs:
        try:
            return await admin.kick(target, idc.name, uid, device)
        except (Unavailable, OutcomeUnknown) as error:
            failed = error
    assert failed is not None
    raise failed
