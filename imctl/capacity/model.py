"""From a workload and figures to what it needs: roles, engines, links, disks, an error budget.

What the deployment is, and so what the model says (docs/architecture.md):

- every IDC folds every message and keeps a copy of every log: folds, logs and disks do not shrink
  by adding IDCs; connections, requests and pushes are shared out;
- IDCs are of equal size. A loss leaves ``survivors`` of them, each with 1/survivors of the
  clients, and none above ``headroom`` of what it has;
- a partition has one sequencer and one applier, so there are at least as many as im processes;
- who was connected to a lost IDC connects elsewhere within ``rto_s``; for that, and only for that,
  a survivor may use all it has.
"""

from __future__ import annotations

from imctl.capacity import budget
from imctl.capacity.engines import Engines
from imctl.capacity.figures import Figures
from imctl.capacity.inputs import Workload
from imctl.capacity.loads import HOPS, Loads
from imctl.capacity.quantity import whole
from imctl.capacity.result import Driver, Engine, Line, Role, Sizing, Totals, Used
from imctl.capacity.roles import Roles
from imctl.capacity.volumes import Volumes

PARTITIONS_MAX = 1024  # of one region file (imcore.region.model)


def size(workload: Workload, figures: Figures) -> Sizing:
    """The whole answer. Deterministic; raises nothing for inputs that are valid."""
    return _Model(workload, figures).sizing()


class _Model:
    def __init__(self, workload: Workload, figures: Figures) -> None:
        self._w, self._f = workload, figures
        self._roles = Roles(workload, figures)
        self._engines = Engines(workload, figures)
        self._volumes = Volumes(workload, figures)

    def sizing(self) -> Sizing:
        roles = self._roles.all()
        partitions = self._engines.partitions(roles[2].per_idc)
        brokers, stores = self._engines.brokers(partitions), self._engines.stores()
        return Sizing(
            inputs=self._w,
            load=self._load(),
            roles=roles,
            partitions=partitions,
            engines=[brokers, stores],
            network=self._volumes.network(),
            storage=self._volumes.storage(),
            budget=[*budget.lines(self._w), self._roles.back_after(roles)],
            cores_by=self._cores_by(brokers, stores),
            disk_by=self._disk_by(),
            totals=self._totals(roles, [brokers, stores]),
            notes=self._notes(partitions),
            figures=[Used(**self._f.figure(name)._asdict()) for name in self._f],
        )

    def _load(self) -> list[Line]:
        w = self._w
        given = w.peak_messages_s is not None
        return [
            Line.of("messages_a_day", "Messages per day", w.messages_a_day, "msg",
                    "daily_users x messages_per_user"),
            Line.of("peak", "Messages at peak", w.peak, "msg/s",
                    "as given" if given else "messages per day / 86,400 s x peak_factor"),
            Line.of("connections", "Connections at peak", w.connections, "",
                    "daily_users x online_share x devices"),
            Line.of("pushes", "Devices that receive a message", w.pushes, "",
                    "devices x (1 + (mean members - 1) x online_share)"),
            Line.of("deliveries", "Pushes at peak", w.peak * w.pushes, "push/s",
                    "messages at peak x devices that receive a message"),
        ]  # fmt: skip

    def _cores_by(self, brokers: Engine, stores: Engine) -> list[Driver]:
        """At the peak, all IDCs; engines with the cores of their machines."""
        cores: dict[str, float] = {}
        loads, part = Loads(self._w, self._f), 1 / self._w.idcs
        for name in HOPS:
            for driver, value in loads.of(name, part).items():
                cores[driver] = cores.get(driver, 0.0) + value * self._w.idcs
        cores[brokers.name] = brokers.all * brokers.cores
        total = stores.all * stores.cores
        if stores.bound_by == "rows/s":
            timelines = self._engines.timeline_rows() / (
                self._engines.message_rows() + self._engines.timeline_rows()
            )
            cores[f"{stores.name}: message rows"] = total * (1 - timelines)
            cores[f"{stores.name}: group timelines"] = total * timelines
        else:
            cores[stores.name] = total
        return _ranked(cores, "cores")

    def _disk_by(self) -> list[Driver]:
        w = self._w
        content = w.message_bytes / self._volumes.rows()
        kv = self._volumes.kv_bytes() * w.idcs
        return _ranked(
            {
                "KV: message content": kv * content,
                "KV: keys, order, ids": kv * (1 - content),
                "logs, own and copies": self._volumes.log_bytes() * w.idcs,
            },
            "B",
        )

    def _totals(self, roles: list[Role], engines: list[Engine]) -> Totals:
        machines: list[Role | Engine] = [*roles, *engines]
        w = self._w
        network = {line.name: line.value for line in self._volumes.network()}
        return Totals(
            cores=sum(each.all * each.cores for each in machines),
            memory_gib=sum(each.all * each.memory_gib for each in machines),
            disk_bytes=self._volumes.disk(),
            wan_bit_s=network["wan_link"] * w.idcs * (w.idcs - 1),
            client_bit_s=network["client_out"] * w.surviving,
        )

    def _notes(self, partitions: Line) -> list[str]:
        notes = []
        w = self._w
        if partitions.value > PARTITIONS_MAX:
            cells = whole(partitions.value / PARTITIONS_MAX)
            notes.append(
                f"{partitions.value:,.0f} partitions exceed the {PARTITIONS_MAX:,} that a region "
                f"file allows: split the users over {cells} deployments"
            )
        if w.surviving == w.idcs:
            notes.append("no IDC may be lost, because survivors is the number of IDCs")
        if w.heartbeat_s >= w.rto_s:
            notes.append(
                f"rto_s of {w.rto_s:g} s cannot be met: with a heartbeat each "
                f"{w.heartbeat_s:g} s clients notice too late that their IDC is silent"
            )
        if w.headroom == 1 and w.surviving in (1, w.idcs):
            notes.append("links have no headroom, so an IDC that was away never catches up")
        large = [group.members for group in w.groups if group.members > 10_000]
        if large:
            notes.append(
                f"groups of {max(large):,.0f} exceed the default of group_members_max (10,000)"
            )
        return notes


def _ranked(values: dict[str, float], unit: str) -> list[Driver]:
    total = sum(values.values()) or 1.0
    ranked = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    return [
        Driver(name=name, value=value, unit=unit, share=value / total) for name, value in ranked
    ]
