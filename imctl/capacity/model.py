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

import math
from collections.abc import Iterable

from imctl.capacity import budget
from imctl.capacity.figures import Figures
from imctl.capacity.inputs import Workload
from imctl.capacity.loads import HOPS, Loads
from imctl.capacity.result import Driver, Engine, Line, Role, Sizing, Totals, Used

INSTANCES_MIN = 2  # of a role in an IDC: one may fail
PARTITIONS_MAX = 1024  # of one region file (imcore.region.model)
GIB = 1024.0
TIMELINE_MEMBERS_MAX = 500  # larger groups have no timelines (imcore.region.model)


def size(workload: Workload, figures: Figures) -> Sizing:
    """The whole answer. Deterministic; raises nothing for inputs that are valid."""
    return _Model(workload, figures).sizing()


class _Model:
    def __init__(self, workload: Workload, figures: Figures) -> None:
        self._w, self._f = workload, figures
        self._loads = Loads(workload, figures)
        self._normal, self._worst = 1 / workload.idcs, 1 / workload.surviving

    def sizing(self) -> Sizing:
        roles = [self._gateway(), self._state(), self._im(), self._route()]
        partitions = self._partitions(roles[2].per_idc)
        brokers = self._brokers(partitions)
        stores = self._stores()
        storage = self._storage()
        return Sizing(
            inputs=self._w,
            load=self._load(),
            roles=roles,
            partitions=partitions,
            engines=[brokers, stores],
            network=self._network(),
            storage=storage,
            budget=[*budget.lines(self._w), self._back_after(roles)],
            cores_by=self._cores_by(brokers, stores),
            disk_by=self._disk_by(),
            totals=self._totals(roles, [brokers, stores]),
            notes=self._notes(partitions, roles),
            figures=[Used(**self._f.figure(name)._asdict()) for name in self._f],
        )

    # ------------------------------------------------------------------------------ the load

    def _load(self) -> list[Line]:
        w = self._w
        given = w.peak_messages_s is not None
        return [
            Line.of("messages_a_day", "Messages a day", w.messages_a_day, "msg",
                    "daily_users x messages_per_user"),
            Line.of("peak", "Messages at the peak", w.peak, "msg/s",
                    "as given" if given else "messages a day / 86,400 s x peak_factor"),
            Line.of("connections", "Connections at the peak", w.connections, "",
                    "daily_users x online_share x devices"),
            Line.of("pushes", "Devices that a message is pushed to", w.pushes, "",
                    "devices x (1 + (mean members - 1) x online_share)"),
            Line.of("deliveries", "Pushes at the peak", w.peak * w.pushes, "push/s",
                    "messages at the peak x devices that each is pushed to"),
        ]  # fmt: skip

    # --------------------------------------------------------------------------------- roles

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
            "two at least": float(INSTANCES_MIN),
            "cores": worst / (process * w.headroom),
            "reconnects": (worst + self._storm_cores(share)) / process if share else 0.0,
        } | others
        bound = max(asked, key=lambda reason: asked[reason])
        per_idc = _whole(asked[bound])
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
            assumed=self._assumed(names),
        )

    def _storm_cores(self, share: float) -> float:
        """Cores of a survivor that take the clients of the lost IDCs in within ``rto_s``."""
        return self._returning() * self._f["connect_us"] * share / 1e6 / self._w.rto_s

    def _returning(self) -> float:
        """Connections that a survivor takes over."""
        return self._w.connections * (self._worst - self._normal)

    def _back_after(self, roles: list[Role]) -> Line:
        f = self._f
        seconds = 0.0
        shares = (f["gateway_share"], 1 - f["gateway_share"])
        for role, share in zip(roles[:2], shares, strict=True):
            spare = role.per_idc * role.cores * (1 - self._cpu_use(role))
            work = self._returning() * f["connect_us"] * share / 1e6
            seconds = max(seconds, work / spare if work else 0.0)
        return Line.of(
            "back_after", "Clients of a lost IDC are taken in within", seconds, "s",
            "their connects x CPU of one / cores that the survivors have to spare",
            self._assumed(("connect_us", "gateway_share")),
        )  # fmt: skip

    def _cpu_use(self, role: Role) -> float:
        load = sum(self._loads.of(role.name, self._worst).values())
        return load / (role.per_idc * role.cores)

    # ------------------------------------------------------------------------------- engines

    def _partitions(self, im_per_idc: int) -> Line:
        written_mb = self._w.peak * self._worst * self._record() / 1e6
        by_bytes = written_mb / (self._f["partition_mb_s"] * self._w.headroom)
        value = max(im_per_idc, _whole(by_bytes))
        return Line.of(
            "partitions", "Partitions, alike in every IDC", value, "",
            "max(im processes of an IDC, own log MB/s / MB/s of a partition / headroom)",
            self._assumed((*HOPS["im"], "partition_mb_s")),
        )  # fmt: skip

    def _record(self) -> float:
        return self._w.message_bytes + self._f["record_bytes"]

    def _brokers(self, partitions: Line) -> Engine:
        w, f = self._w, self._f
        # The own log; of each other one MirrorMaker's copy and a relay.
        copies = 1 + 2 * (w.idcs - 1)
        replicas = partitions.value * copies * w.replication_factor
        written_mb = w.peak * self._record() / 1e6 * w.replication_factor
        disk_tb = self._log_bytes() / 1e12
        asked = {
            "replication": float(w.replication_factor),
            "MB/s": written_mb / (f["broker_mb_s"] * w.headroom),
            "replicas": replicas / f["broker_replicas"],
            "disk": disk_tb / (f["broker_tb"] * f["disk_fill"]),
        }
        return self._engine(
            "Kafka brokers", asked,
            "max(MB/s of all logs x replication / MB/s of a broker / headroom, "
            "log on disk / disk, partition replicas / their limit)",
            f["broker_cores"], f["broker_gib"],
            ("broker_mb_s", "broker_replicas", "broker_tb", "disk_fill", "broker_cores"),
        )  # fmt: skip

    def _stores(self) -> Engine:
        w, f = self._w, self._f
        rows = w.peak * (self._message_rows() + self._timeline_rows()) * w.replication_factor
        asked = {
            "replication": float(w.replication_factor),
            "rows/s": rows / (f["store_rows_s"] * w.headroom),
            "disk": self._kv_bytes() / 1e12 / (f["store_tb"] * f["disk_fill"]),
        }
        return self._engine(
            "TiKV stores", asked,
            "max(messages/s x (rows written + a shadow row + timelines) x replication / rows/s of "
            "a store / headroom, KV on disk / disk)",
            f["store_cores"], f["store_gib"],
            ("store_rows_s", "store_tb", "store_amplification", "disk_fill", "store_cores"),
        )  # fmt: skip

    def _message_rows(self) -> float:
        """Rows written for a message between two, the shadow row among them."""
        return self._f["row_writes"] + 1

    def _timeline_rows(self) -> float:
        """More of them in larger groups, one for each other member; as if no two messages of a
        batch had a receiver in common, so an upper bound."""
        return sum(
            group.share * (group.members - 2)
            for group in self._w.groups
            if group.members <= TIMELINE_MEMBERS_MAX
        )

    def _engine(
        self,
        name: str,
        asked: dict[str, float],
        formula: str,
        cores: float,
        gib: float,
        uses: Iterable[str],
    ) -> Engine:
        bound = max(asked, key=lambda reason: asked[reason])
        per_idc = _whole(asked[bound])
        return Engine(
            name=name,
            per_idc=per_idc,
            all=per_idc * self._w.idcs,
            cores=cores,
            memory_gib=gib,
            bound_by=bound,
            formula=formula,
            assumed=self._assumed(uses),
        )

    # ------------------------------------------------------------------------ links and disks

    def _network(self) -> list[Line]:
        w, f = self._w, self._f
        a_message = self._record() * f["wan_overhead"] * 8
        normal = w.peak * self._normal * a_message
        # With one survivor no link is in use.
        loaded = w.peak * self._worst * a_message if w.surviving > 1 else normal
        link = loaded / w.headroom
        wan = self._assumed(("wan_overhead",))
        frame_bytes = w.message_bytes + f["push_bytes"] + f["packet_bytes"]
        ack_bytes = f["push_bytes"] + f["packet_bytes"]
        beats = w.connections / w.heartbeat_s * f["packet_bytes"]
        out = (w.peak * (w.pushes * frame_bytes + ack_bytes) + beats) * self._worst * 8
        catch_up = []
        if link > normal:
            missed = w.peak * self._worst * a_message * 3600
            catch_up = [
                Line.of("catch_up", "An IDC away for 1 h has caught up after",
                        missed / (link - normal), "s",
                        "missed bytes of a survivor / (link - link at the peak)", wan)
            ]  # fmt: skip
        return [
            Line.of("links", "WAN links, each both ways", w.idcs * (w.idcs - 1) / 2, "",
                    "idcs x (idcs - 1) / 2"),
            Line.of("wan_peak", "A link at the peak, each way", normal, "bit/s",
                    "messages/s of one IDC x (message_bytes + record_bytes) x wan_overhead", wan),
            Line.of("wan_after_loss", "A link after a loss, each way", loaded, "bit/s",
                    "the same, with the messages/s of a survivor", wan),
            Line.of("wan_link", "A link must have, each way", link, "bit/s",
                    "a link after a loss / headroom", wan),
            Line.of("client_out", "To clients, of an IDC after a loss", out, "bit/s",
                    "(pushes + acks + heartbeats) x their bytes",
                    self._assumed(("packet_bytes",))),
            *catch_up,
        ]  # fmt: skip

    def _kv_a_day(self) -> float:
        """One copy, of one IDC."""
        return self._w.messages_a_day * self._rows()

    def _rows(self) -> float:
        """What a message takes in the KV, bytes."""
        return self._w.message_bytes + self._f["row_bytes"] + self._f["shadow_bytes"]

    def _kv_bytes(self) -> float:
        """On the disks of one IDC, for the whole retention."""
        w = self._w
        kept = self._kv_a_day() * w.retention_days
        return kept * w.replication_factor * self._f["store_amplification"]

    def _log_a_day(self) -> float:
        """One copy, of one IDC: its own log and its copies of all others."""
        return self._w.messages_a_day * self._record()

    def _log_bytes(self) -> float:
        """On the disks of one IDC."""
        return self._log_a_day() * self._w.log_hours / 24 * self._w.replication_factor

    def _storage(self) -> list[Line]:
        w = self._w
        amplified = self._assumed(("store_amplification",))
        a_day = self._kv_a_day() * self._f["store_amplification"] + self._log_a_day()
        return [
            Line.of("kv_a_day", "KV a day, one copy", self._kv_a_day(), "B",
                    "messages a day x (message_bytes + row_bytes + shadow_bytes)"),
            Line.of("log_a_day", "Logs a day, one copy", self._log_a_day(), "B",
                    "messages a day x (message_bytes + record_bytes)"),
            Line.of("written_a_day", "Written a day, all copies and IDCs",
                    a_day * w.replication_factor * w.idcs, "B",
                    "(KV x store_amplification + logs) x replication x idcs", amplified),
            Line.of("kv_kept", f"KV kept {w.retention_days:g} days, one IDC", self._kv_bytes(),
                    "B", "KV a day x retention_days x replication x store_amplification",
                    amplified),
            Line.of("log_kept", f"Logs kept {w.log_hours:g} h, one IDC", self._log_bytes(), "B",
                    "logs a day x log_hours / 24 x replication"),
            Line.of("disk", "On disk, all IDCs", self._disk(), "B",
                    "(KV kept + logs kept) x idcs", amplified),
        ]  # fmt: skip

    def _disk(self) -> float:
        return (self._kv_bytes() + self._log_bytes()) * self._w.idcs

    # ------------------------------------------------------------------- what causes the cost

    def _cores_by(self, brokers: Engine, stores: Engine) -> list[Driver]:
        """At the peak, all IDCs; engines with the cores of their machines."""
        cores: dict[str, float] = {}
        for name in HOPS:
            for driver, value in self._loads.of(name, self._normal).items():
                cores[driver] = cores.get(driver, 0.0) + value * self._w.idcs
        cores[brokers.name] = brokers.all * brokers.cores
        total = stores.all * stores.cores
        if stores.bound_by == "rows/s":
            timelines = self._timeline_rows() / (self._message_rows() + self._timeline_rows())
            cores[f"{stores.name}: rows of messages"] = total * (1 - timelines)
            cores[f"{stores.name}: timelines of groups"] = total * timelines
        else:
            cores[stores.name] = total
        return _ranked(cores, "cores")

    def _disk_by(self) -> list[Driver]:
        w = self._w
        content = w.message_bytes / self._rows()
        kv = self._kv_bytes() * w.idcs
        return _ranked(
            {
                "KV: content of messages": kv * content,
                "KV: keys, order, ids": kv * (1 - content),
                "logs, own and copies": self._log_bytes() * w.idcs,
            },
            "B",
        )

    def _totals(self, roles: list[Role], engines: list[Engine]) -> Totals:
        machines: list[Role | Engine] = [*roles, *engines]
        w = self._w
        network = {line.name: line.value for line in self._network()}
        return Totals(
            cores=sum(each.all * each.cores for each in machines),
            memory_gib=sum(each.all * each.memory_gib for each in machines),
            disk_bytes=self._disk(),
            wan_bit_s=network["wan_link"] * w.idcs * (w.idcs - 1),
            client_bit_s=network["client_out"] * w.surviving,
        )

    def _notes(self, partitions: Line, roles: list[Role]) -> list[str]:
        notes = []
        w = self._w
        if partitions.value > PARTITIONS_MAX:
            cells = _whole(partitions.value / PARTITIONS_MAX)
            notes.append(
                f"{partitions.value:,.0f} partitions are more than the {PARTITIONS_MAX:,} of one "
                f"region file: {cells} deployments, each with its part of the users"
            )
        if w.surviving == w.idcs:
            notes.append("no IDC may be lost: survivors is the number of IDCs")
        if w.heartbeat_s >= w.rto_s:
            notes.append(
                f"a client notices that its IDC is silent by a heartbeat: with one each "
                f"{w.heartbeat_s:g} s, rto_s of {w.rto_s:g} s is not kept"
            )
        if w.headroom == 1 and w.surviving in (1, w.idcs):
            notes.append("links without headroom: an IDC that was away never catches up")
        large = [group.members for group in w.groups if group.members > 1000]
        if large:
            notes.append(
                f"groups of {max(large):,.0f} are above the default of group_members_max (1,000)"
            )
        return notes

    def _assumed(self, names: Iterable[str]) -> list[str]:
        return sorted({name for name in names if self._f.figure(name).assumed})


def _whole(value: float) -> int:
    """The next whole number; what is a whole number but for rounding is that one."""
    return max(1, math.ceil(value - value * 1e-9))


def _ranked(values: dict[str, float], unit: str) -> list[Driver]:
    total = sum(values.values()) or 1.0
    ranked = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    return [
        Driver(name=name, value=value, unit=unit, share=value / total) for name, value in ranked
    ]
