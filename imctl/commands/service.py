"""service-token: what lets one of the operator's own servers use the admin API."""

from __future__ import annotations

from typing import Annotated

import typer

from imcore.errors import BadInput
from imcore.pki import load_region_keys
from imcore.runtime import SystemClock
from imcore.servicetokens import Scope, Service, mint
from imcore.words import valid_id
from imctl import deployment
from imctl.identity import DAY_S
from imctl.options import Data


def service_token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the server.")],
    uid: Annotated[str, typer.Argument(metavar="UID", help="The user that the server acts as.")],
    scope: Annotated[
        list[Scope],
        typer.Option(
            metavar="SCOPE",
            help=f"What the server may do: {', '.join(Scope)}; repeatable.",
        ),
    ],
    ttl: Annotated[int, typer.Option(metavar="SECONDS", min=1, help="Lifetime of the token.")] = 30
    * DAY_S,
    data: Data = None,
) -> None:
    """Create an admin API token for a server.

    It is signed with the region key.

    Example: imctl service-token billing notices --scope messages --scope groups
    """
    target = deployment.find(data)
    for what, text in (("NAME", name), ("UID", uid)):
        if not valid_id(text):
            raise BadInput(f"{what}: expected 1 to 64 letters, digits and . _ - @, got {text!r}")
    expires_ms = SystemClock().wall_ms() + ttl * 1000
    service = Service(name, uid, tuple(dict.fromkeys(scope)), expires_ms)
    print(mint(load_region_keys(target.pki), service))
