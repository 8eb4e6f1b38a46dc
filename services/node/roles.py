"""Which roles one process of an IDC runs."""

from __future__ import annotations

from enum import Enum

from imcore.errors import BadInput


class Roles(Enum):
    """The sets that can be processes of their own. A front's state is that of its one gateway, so
    the two stay together; what has a share in the logs and the KV is the core. In each IDC one core
    serves; others may stand by (services.node.standby). ipconf has no share in them, and needs no
    core to answer. route alone stands between a core, which has the table of routes in any case,
    and its fronts (services.split.route)."""

    ALL = ("gateway", "state", "im", "route", "ipconf", "control")
    FRONT = ("gateway", "state")
    CORE = ("im", "route", "ipconf", "control")
    CORE_ALONE = ("im", "route", "control")
    IPCONF = ("ipconf",)
    ROUTE = ("route",)

    @property
    def ipconf(self) -> bool:
        """Whether it answers clients that ask where to connect."""
        return "ipconf" in self.value


def parse_roles(text: str) -> Roles:
    """Roles with commas between, in any order, or "all". Raises BadInput."""
    given = [name.strip() for name in text.split(",")]
    for roles in Roles:
        if sorted(given) == sorted(roles.value):
            return roles
    if given == ["all"]:
        return Roles.ALL
    sets = " or ".join(",".join(roles.value) for roles in Roles if roles is not Roles.ALL)
    raise BadInput(f"--roles {text}: expected all, or {sets} (these go together)")
