"""What others may write in this registry, for the server's ``Authorizer``: an operator, by content,
and other IDCs, which propose and abstain from all else. Its own IDC's processes (gateways by
themselves, which show its certificate) and the admin may everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imcore.proto import peer_pb2 as pb
from imcore.roles import Role, role_named, said
from services.control.acceptor import PREFIX
from services.control.anchoring import anchor_key
from services.control.permit import peer_swap_refusal, swap_refusal
from services.node.authorize import Limit
from services.node.identity import register_key
from services.node.media import STICKERS
from services.node.standby import CORES_MAX, audit_writer
from services.ports import Registry

_SERVICE = "/im.v1.Registry/"
NEVER = (1 << 63) - 1  # a revision that no registry comes to


class RegistryLimits:
    """``own``: whose registry it is."""

    def __init__(self, own: str, registry: Registry) -> None:
        self._own = own
        self._registry = registry

    @property
    def limits(self) -> Mapping[str, Limit]:
        """By full method name."""
        leases = ("LeaseGrant", "LeaseKeepAlive", "LeaseRevoke")
        return {
            f"{_SERVICE}CompareAndSwap": self.swap,
            **{f"{_SERVICE}{method}": self.lease for method in leases},
        }

    def _free(self, name: str) -> bool:
        return name == self._own or role_named(name) is Role.ADMIN

    async def lease(self, name: str, _: Any) -> str:
        """Leases are of gateways and votes, which an IDC writes in its own registry."""
        return "" if self._free(name) else self._said(name, "A lease")

    async def swap(self, name: str, request: pb.RegistryCas) -> str:
        """Raises what the registry raises when it cannot be read: then nothing is swapped."""
        if self._free(name):
            return ""
        if request.unconditional or request.remove or request.lease:
            return self._said(name, "A write that is no swap of a value")
        if not request.key.startswith(f"{PREFIX}/".encode()):
            return self._said(name, "Writing anything but records")
        current = await self._registry.get(request.key)
        revision = current.mod_revision if current else 0
        if request.expected_mod_revision != revision:
            # It fails, and its answer says what is there. What is not there yet may be there by the
            # time of the swap, which nobody has judged then.
            request.expected_mod_revision = NEVER
            return ""
        before = current.value if current else None
        if role_named(name) is None:
            writers = (audit_writer(name, number) for number in range(1, CORES_MAX + 1))
            own = (register_key(name), *map(anchor_key, writers))
            why = peer_swap_refusal(
                request.key, before, request.value, name, own, shared=(STICKERS,)
            )
        else:
            why = swap_refusal(request.key, before, request.value, name)
        return self._said(name, why) if why else ""

    def _said(self, name: str, what: str) -> str:
        peer = role_named(name) is None
        needed = f"the certificate of {self._own}" if peer else f"the role {Role.ADMIN}"
        return said(name, what, f"needs {needed}")
