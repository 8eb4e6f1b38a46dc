"""What an operator may swap in this registry, for the server's ``Authorizer``."""

from __future__ import annotations

from imcore.proto import peer_pb2 as pb
from imcore.roles import Role, role_named, said
from services.control.permit import swap_refusal
from services.ports import Registry

SWAP = "/im.v1.Registry/CompareAndSwap"


class SwapLimit:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def refusal(self, name: str, request: pb.RegistryCas) -> str:
        """Raises what the registry raises when it cannot be read: then nothing is swapped."""
        if role_named(name) is not Role.OPERATOR:
            return ""
        if request.unconditional or request.remove or request.lease:
            return said(name, "A write that is no swap of a value", f"needs the role {Role.ADMIN}")
        current = await self._registry.get(request.key)
        # A swap of another revision fails by itself, and so does one of this if it changes first.
        if request.expected_mod_revision != (current.mod_revision if current else 0):
            return ""
        why = swap_refusal(request.key, current.value if current else None, request.value, name)
        return said(name, why, f"needs the role {Role.ADMIN}") if why else ""
