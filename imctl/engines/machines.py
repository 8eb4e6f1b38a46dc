"""How many machines an IDC's engines get on Kubernetes, and how large each is."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from imcore.errors import BadInput
from imctl.capacity.figures import Figures
from imctl.capacity.inputs import Workload
from imctl.capacity.model import size
from imctl.capacity.result import Engine

Object = dict[str, Any]
_QUANTITY = re.compile(r"[1-9][0-9]*[MGTP]i?")


@dataclass(frozen=True, slots=True)
class Machines:
    """``disk``: of each, as Kubernetes writes it, such as 500Gi."""

    count: int
    cores: float
    memory_gib: float
    disk: str

    def but(self, count: int | None, disk: str | None, flag: str) -> Machines:
        """With what was asked for; None: as it is. ``flag``: by which the disk was. Raises
        BadInput."""
        if disk is not None and not _QUANTITY.fullmatch(disk):
            raise BadInput(f"{flag}: expected a size such as 500Gi or 2T, got {disk!r}")
        return replace(self, count=count or self.count, disk=disk or self.disk)

    def requests(self) -> Object:
        return {"cpu": f"{self.cores:g}", "memory": f"{self.memory_gib:g}Gi"}


@dataclass(frozen=True, slots=True)
class Layout:
    """The least that survives the loss of a machine. ``storage_class`` None: the cluster's own
    default."""

    brokers: Machines = Machines(3, 2, 8, "500Gi")
    controllers: Machines = Machines(3, 1, 2, "20Gi")
    stores: Machines = Machines(3, 4, 16, "500Gi")
    pd: Machines = Machines(3, 2, 4, "20Gi")
    storage_class: str | None = None

    def for_workload(self, workload: Workload, figures: Figures) -> Layout:
        """With the brokers and stores of an IDC that `imctl size` works out. Of controllers and PD
        it says nothing."""
        brokers, stores = size(workload, figures).engines
        return replace(
            self,
            brokers=_machines(brokers, figures["broker_tb"]),
            stores=_machines(stores, figures["store_tb"]),
        )


def _machines(engine: Engine, terabytes: float) -> Machines:
    return Machines(engine.per_idc, engine.cores, engine.memory_gib, f"{terabytes * 1000:g}G")
