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
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the server.")],
    uid: Annotated[str, typer.Argument(metavar="UID", help="As which user it speaks.")],
    scope: Annotated[list[Scope], typer.Option(help="What it may do; may be repeated.")],
    ttl: Annotated[int, typer.Option(min=1, help="Seconds until it expires.")] = 30 * DAY_S,
    data: Data = None,
) -> None:
    """Mint a token for the admin API, signed with the region key.

    Example: imctl service-token billing notices --scope messages --scope groups
    """
    target = deployment.find(data)
    for what, text in (("NAME", name), ("UID", uid)):
        if not valid_id(text):
            raise BadInput(f"{what}: expected 1 to 64 letters, digits and . _ - @, got {text!r}")
    expires_ms = SystemClock().wall_ms() + ttl * 1000
    service = Service(name, uid, tuple(dict.fromkeys(scope)), expires_ms)
    print(mint(load_region_keys(target.pki), service))
