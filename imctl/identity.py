"""Tokens and addresses that let ``imctl`` speak as a user of a deployment."""

from __future__ import annotations

from imcore.errors import BadInput
from imcore.pki import load_region_keys
from imcore.region.rules import ipconf_addresses
from imcore.runtime import Clock
from imcore.tokens import Claims, mint
from imcore.words import DEVICE_KINDS, valid_id
from imctl.target.base import Target

DAY_S = 86_400


def token_for(
    target: Target,
    uid: str,
    device: str,
    clock: Clock,
    ttl_s: int = DAY_S,
    admin: bool = False,
    kind: str = "",
) -> str:
    """Raises BadInput."""
    for what, text in (("uid", uid), ("device", device)):
        if not valid_id(text):
            raise BadInput(
                f"expected a {what} of 1 to 64 letters, digits and . _ - @, got {text!r}"
            )
    if kind not in DEVICE_KINDS:
        kinds = ", ".join(filter(None, DEVICE_KINDS))
        raise BadInput(f"expected a kind of device ({kinds}), got {kind!r}")
    claims = Claims(uid, device, clock.wall_ms() + ttl_s * 1000, admin, kind)
    return mint(load_region_keys(target.pki), claims)


def ipconf_urls(target: Target) -> list[str]:
    """Of all IDCs."""
    idcs = target.region.spec.idcs
    return [f"https://{address}" for idc in idcs for address in ipconf_addresses(idc)]
