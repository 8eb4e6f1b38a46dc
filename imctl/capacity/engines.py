"""Kafka partitions and brokers, TiKV stores, of one IDC."""

from __future__ import annotations

from collections.abc import Iterable

from imctl.capacity.figures import Figures
from imctl.capacity.inputs import Workload
from imctl.capacity.loads import HOPS
from imctl.capacity.quantity import whole
from imctl.capacity.result import Engine, Line
from imctl.capacity.volumes import Volumes

TIMELINE_MEMBERS_MAX = 500  # larger groups have no timelines (imcore.region.model)


class Engines:
    """They do the same however many IDCs are up: each holds everything."""

    def __init__(self, workload: Workload, figures: Figures) -> None:
        self._w, self._f = workload, figures
        self._volumes = Volumes(workload, figures)

    def partitions(self, im_per_idc: int) -> Line:
        """Alike in every IDC, so as the one that carries most needs."""
        written_mb = self._w.peak / self._w.surviving * self._volumes.record() / 1e6
        by_bytes = written_mb / (self._f["partition_mb_s"] * self._w.headroom)
        value = max(im_per_idc, whole(by_bytes))
        return Line.of(
            "partitions", "Partitions, the same in every IDC", value, "",
            "max(im processes of an IDC, own log MB/s / MB/s of a partition / headroom)",
            self._f.assumed((*HOPS["im"], "partition_mb_s")),
        )  # fmt: skip

    def brokers(self, partitions: Line) -> Engine:
        w, f = self._w, self._f
        # The own log; of each other one MirrorMaker's copy and a relay.
        copies = 1 + 2 * (w.idcs - 1)
        replicas = partitions.value * copies * w.replication_factor
        written_mb = w.peak * self._volumes.record() / 1e6 * w.replication_factor
        disk_tb = self._volumes.log_bytes() / 1e12
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

    def stores(self) -> Engine:
        w, f = self._w, self._f
        rows = w.peak * (self.message_rows() + self.timeline_rows()) * w.replication_factor
        asked = {
            "replication": float(w.replication_factor),
            "rows/s": rows / (f["store_rows_s"] * w.headroom),
            "disk": self._volumes.kv_bytes() / 1e12 / (f["store_tb"] * f["disk_fill"]),
        }
        return self._engine(
            "TiKV stores", asked,
            "max(messages/s x (rows written + a shadow row + timelines) x replication / rows/s of "
            "a store / headroom, KV on disk / disk)",
            f["store_cores"], f["store_gib"],
            ("store_rows_s", "store_tb", "store_amplification", "disk_fill", "store_cores"),
        )  # fmt: skip

    def message_rows(self) -> float:
        """Rows written for a message between two, the shadow row among them."""
        return self._f["row_writes"] + 1

    def timeline_rows(self) -> float:
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
        per_idc = whole(asked[bound])
        return Engine(
            name=name,
            per_idc=per_idc,
            all=per_idc * self._w.idcs,
            cores=cores,
            memory_gib=gib,
            bound_by=bound,
            formula=formula,
            assumed=self._f.assumed(uses),
        )
