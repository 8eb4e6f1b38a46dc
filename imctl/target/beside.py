"""The engines of a local deployment as processes: what each runs, in which order, and its data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imcore.region.model import Idc, Kafka, Region
from imctl.engines import binaries, etcd, kafka, mm2, mm2_config, s3, tikv
from imctl.target import engines as named
from imctl.target.engines import ETCD, KAFKA, S3, TIKV, unit
from imctl.target.places import Places

PD, MM2 = "pd", "mm2"
TIKV_KINDS = (PD, TIKV)
LAST_STAGE = 2


@dataclass(frozen=True, slots=True)
class EngineUnit:
    """``stage``: 0 depends on nothing, 1 on the IDC's own others, 2 on those of other IDCs; each
    starts after all before it, and ends before them. ``data``: what a wipe deletes, with that of
    the IDC's ``kin``, which is of no use without. ``marks``: words of its command by which its
    process is known; they name its data, and so the deployment."""

    name: str
    idc: str
    kind: str
    stage: int
    data: Path
    marks: tuple[str, ...]
    prepare: Callable[[], None]  # before each start; raises Failed
    command: Callable[[], list[str]]  # raises Failed
    healthy: Callable[[], bool]
    kin: tuple[str, ...] = ()
    starts_s: float = 120.0  # at most; a broker killed on a machine that others use took 70
    ends_s: float = 5.0

    @property
    def log(self) -> Path:
        return self.data.with_name(f"{self.kind}.log")


class Beside:
    """Those of a whole region. ``tikv_elsewhere``: IDCs whose TiKV is none of them."""

    def __init__(
        self,
        region: Region,
        folder: Path,
        pki: Path,
        engines: Sequence[str],
        places: Places,
        tikv_elsewhere: Collection[str] = (),
    ) -> None:
        self._region = region
        self._folder = folder
        self._pki = pki
        self._places = places
        self._tikv_elsewhere = tikv_elsewhere
        found = [one for idc in region.spec.idcs for one in self._units(idc, engines)]
        self._found = {one.name: one for one in sorted(found, key=lambda one: one.stage)}

    @property
    def names(self) -> list[str]:
        """In the order of starting."""
        return list(self._found)

    def __getitem__(self, name: str) -> EngineUnit:
        return self._found[name]

    def of(self, idc: str) -> list[EngineUnit]:
        """In the order of starting."""
        return [one for one in self._found.values() if one.idc == idc]

    def wiped_with(self, name: str) -> list[EngineUnit]:
        """This unit and its kin."""
        one = self._found[name]
        return [other for other in self.of(one.idc) if other.kind in (one.kind, *one.kin)]

    # ------------------------------------------------------------------------ each engine

    def _units(self, idc: Idc, engines: Sequence[str]) -> Iterator[EngineUnit]:
        if ETCD in engines:
            yield self._etcd(idc)
        if KAFKA in engines:
            yield self._kafka(idc)
            if idc.engines.mirror.mirrormaker2:
                yield self._mm2(idc)
        # KVs are moved one IDC after the other, and perhaps to a TiKV that runs already.
        if TIKV in engines and idc.engines.kv.tikv and idc.name not in self._tikv_elsewhere:
            yield self._pd(idc)
            yield self._tikv(idc)
        if S3 in engines:
            yield self._s3(idc)

    def _data(self, idc: Idc, kind: str) -> Path:
        return self._folder / idc.name / kind

    def _etcd(self, idc: Idc) -> EngineUnit:
        name, data, where = unit(idc.name, ETCD), self._data(idc, ETCD), idc.engines.registry.etcd
        assert where is not None  # with_engines wrote it
        server = etcd.Server(idc.name, data, where.endpoints[0], self._pki, name, idc.name)
        return EngineUnit(
            name, idc.name, ETCD, 0, data, (f"--data-dir={data}",),
            prepare=lambda: None,
            command=lambda: server.command(binaries.need("etcd").path),
            healthy=server.healthy,
        )  # fmt: skip

    def _kafka(self, idc: Idc) -> EngineUnit:
        name, data, where = unit(idc.name, KAFKA), self._data(idc, KAFKA), idc.engines.log.kafka
        assert where is not None
        at = self._places.at
        server = kafka.Server(
            data=data,
            address=where.brokers[0],
            controller=at(named.controller(idc.name)),
            pki=self._pki,
            certificate=name,
            client=idc.name,
            remote={
                source: kafka.Listener(
                    at(named.listener(idc.name, source)), at(named.proxied(source, idc.name))
                )
                for source, target in named.pairs(self._region)
                if target == idc.name
            },
            partitions=self._region.spec.partitions,
            # Not all of them: topics of ours say it themselves, and so do copies of them; what the
            # broker keeps for itself need only outlive a kill.
        )
        mirrors = [source for source, target in named.pairs(self._region) if target == idc.name]
        return EngineUnit(
            name, idc.name, KAFKA, 0, data, ("kafka.Kafka", str(server.properties_file)),
            prepare=lambda: server.prepare(binaries.need("kafka").path),
            command=lambda: server.command(binaries.need("kafka").path),
            healthy=lambda: server.healthy() and _granted(where, idc.name, mirrors),
            ends_s=20.0,
        )  # fmt: skip

    def _mm2(self, idc: Idc) -> EngineUnit:
        """It has no port: that it runs is all that can be asked of it. Its IDC sees its signs of
        life, which imctl.startup waits for once that serves."""
        data = self._data(idc, MM2)
        flows = mm2_config.flows_into(self._region, idc.name)
        secrets = mm2.secrets_file(data)
        credentials = mm2_config.credentials_of(self._region, idc.name, secrets)
        pace = mm2_config.SMALL_MACHINE
        maker = mm2.MirrorMaker(data, flows, credentials, pace=pace)
        return EngineUnit(
            unit(idc.name, MM2), idc.name, MM2, LAST_STAGE, data,
            ("imctl.engines.mirror_keeper", str(maker.settings_file)),
            prepare=maker.prepare,
            command=lambda: maker.kept(binaries.need("kafka").path),
            healthy=lambda: True,
            ends_s=20.0,
        )  # fmt: skip

    def _pd(self, idc: Idc) -> EngineUnit:
        data, where = self._data(idc, PD), idc.engines.kv.tikv
        assert where is not None
        server = tikv.Pd(idc.name, data, where.pd[0], self._places.at(f"{idc.name}-pd peer"))
        return EngineUnit(
            unit(idc.name, PD), idc.name, PD, 0, data, (f"--data-dir={data}",),
            prepare=lambda: None,
            command=lambda: server.command(binaries.need("pd").path),
            healthy=server.healthy,
            kin=(TIKV,),
        )  # fmt: skip

    def _tikv(self, idc: Idc) -> EngineUnit:
        name, data, where = unit(idc.name, TIKV), self._data(idc, TIKV), idc.engines.kv.tikv
        assert where is not None
        at = self._places.at
        store = tikv.MockStore(where.pd[0], at(name), data, at(f"{name} control"))
        pd = tikv.Pd(idc.name, self._data(idc, PD), where.pd[0], at(f"{idc.name}-pd peer"))
        return EngineUnit(
            name, idc.name, TIKV, 1, data, (f"-data={data}",),
            prepare=lambda: None,
            command=lambda: store.command(binaries.need("tikv-mock").path),
            healthy=lambda: pd.has_store(),
            kin=(PD,),
        )  # fmt: skip

    def _s3(self, idc: Idc) -> EngineUnit:
        name, data, where = unit(idc.name, S3), self._data(idc, S3), idc.engines.blobs.s3
        assert where is not None
        server = s3.Server(
            data,
            where.endpoint.removeprefix("https://"),
            self._pki,
            name,
            Path(where.credentials_file),
            where.bucket,
            where.region,
        )
        return EngineUnit(
            name, idc.name, S3, 0, data, (f"--data={data}",),
            prepare=server.prepare,
            command=lambda: server.command(binaries.need("versitygw").path),
            healthy=server.healthy,
        )  # fmt: skip


def _granted(where: Kafka, idc: str, others: Sequence[str]) -> bool:
    # Imported where a broker runs only: every command would wait for a client of Kafka's.
    from imctl.target.rights import mirrors_may_read

    return mirrors_may_read(where, idc, others)
