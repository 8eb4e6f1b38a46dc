"""How many processes of each role an IDC needs, and how busy they are."""

from __future__ import annotations

from collections.abc import Iterable

from imctl.capacity.figures import Figures
from imctl.capacity.inputs import Workload
from imctl.capacity.loads import HOPS, Loads
from imctl.capacity.quantity import whole
from imctl.capacity.result import Line, Role

INSTANCES_MIN = 2  # of a role in an IDC: one may fail
GIB = 1024.0  # in MiB, and MiB in KiB


class Roles:
    """Invariant: with ``survivors`` IDCs left, no process is above ``headroom`` of what it has."""

    def __init__(self, workload: Workload, figures: Figures) -> None:
        self._w, self._f = workload, figures
        self._loads = Loads(workload, figures)
        self._normal, self._worst = 1 / workload.idcs, 1 / workload.surviving

    def all(self) -> list[Role]:
        """gateway, state, im, route."""
        return [self._gateway(), self._state(), self._im(), self._route()]

    def _gateway(self) -> Role:
        w, f = self._w, self._f
        per_gateway = f["gateway_connections"]
        by_connections = w.connections * self._worst / (per_gateway * w.headroom)
        role = self._role(
            "gateway",
            {"connections": by_connections},
            "max(2, cores / headroom, reconnects, connections / limit of one gateway / headroom)",
            f["gateway_share"],
            uses=("gateway_connections",),
        )
        # A full gateway is as loaded by its connections as by its core.
        shares = [
            max(use, w.connections * x / (role.per_idc * per_gateway))
            for use, x in ((role.use_at_peak, self._normal), (role.use_after_loss, self._worst))
        ]
        return role.model_copy(update={"use_at_peak": shares[0], "use_after_loss": shares[1]})

    def _state(self) -> Role:
        rest = 1 - self._f["gateway_share"]
        return self._role("state", {}, "max(2, cores / headroom, reconnects)", rest)

    def _im(self) -> Role:
        formula = (
            "max(2, cores / headroom); cores = own messages x (check, log, ack) + all IDCs' "
            "messages x (fold, mirror)"
        )
        return self._role("im", {}, formula, 0, "im_mib")

    def _route(self) -> Role:
        formula = "max(2, cores / headroom); cores = all IDCs' messages x signals"
        return self._role("route", {}, formula, 0, "route_mib")

    def _role(
        self,
        name: str,
        others: dict[str, float],  # instances that something else than its cores asks for
        formula: str,
        share: float,  # of what a connection takes
        memory: str = "process_mib",
        uses: Iterable[str] = (),
    ) -> Role:
        w, f = self._w, self._f
        normal, worst = (sum(self._loads.of(name, x).values()) for x in (self._normal, self._worst))
        process = f["process_cores"]
        asked = {
            "minimum of 2": float(INSTANCES_MIN),
            "cores": worst / (process * w.headroom),
            "reconnects": (worst + self._storm_cores(share)) / process if share else 0.0,
        } | others
        bound = max(asked, key=lambda reason: asked[reason])
        per_idc = whole(asked[bound])
        kib = w.connections * self._worst / per_idc * f["connection_kib"] * share
        names = {*HOPS[name], memory, "process_cores", *uses}
        if share:
            names |= {"connection_kib", "connect_us", "gateway_share"}
        return Role(
            name=name,
            per_idc=per_idc,
            all=per_idc * w.idcs,
            cores=process,
            memory_gib=(f[memory] + kib / GIB) / GIB,
            use_at_peak=normal / (per_idc * process),
            use_after_loss=worst / (per_idc * process),
            bound_by=bound,
            formula=formula,
            assumed=self._f.assumed(names),
        )

    def _storm_cores(self, share: float) -> float:
        """Cores of a survivor that take the clients of the lost IDCs in within ``rto_s``."""
        return self._returning() * self._f["connect_us"] * share / 1e6 / self._w.rto_s

    def _returning(self) -> float:
        """Connections that a survivor takes over."""
        return self._w.connections * (self._worst - self._normal)

    def back_after(self, roles: list[Role]) -> Line:
        f = self._f
        seconds = 0.0
        shares = (f["gateway_share"], 1 - f["gateway_share"])
        for role, share in zip(roles[:2], shares, strict=True):
            spare = role.per_idc * role.cores * (1 - self._cpu_use(role))
            work = self._returning() * f["connect_us"] * share / 1e6
            seconds = max(seconds, work / spare if work else 0.0)
        return Line.of(
            "back_after", "Clients of a lost IDC are back after", seconds, "s",
            "their connects x CPU per connect / spare cores of the surviving IDCs",
            self._f.assumed(("connect_us", "gateway_share")),
        )  # fmt: skip

    def _cpu_use(self, role: Role) -> float:
        load = sum(self._loads.of(role.name, self._worst).values())
        return load / (role.per_idc * role.cores)
