"""The region file of a local deployment whose engines run beside the IDCs. No process runs."""

from __future__ import annotations

import socket
from collections import deque
from pathlib import Path

import pytest
import yaml

from imcore.errors import BadInput
from imcore.region.load import check_text
from imcore.region.model import Region
from imctl.engines.binaries import Program
from imctl.errors import Failed
from imctl.target import engines
from imctl.target.beside import Beside
from imctl.target.places import Places, free_ports, free_row

THREE = (Path(__file__).resolve().parents[2] / "regions" / "three-idc.yaml").read_text()
ALL = ("kafka", "tikv", "etcd")


def with_fra(**fra: object) -> str:
    document = yaml.safe_load(THREE)
    document["spec"]["idcs"][0]["engines"] = fra
    return yaml.safe_dump(document)


def parsed(text: str) -> Region:
    loaded = check_text(text, "r.yaml")
    assert loaded.region is not None, loaded.problems
    return loaded.region


def written(
    folder: Path, text: str = THREE, names: tuple[str, ...] = ALL
) -> tuple[str, Region, Places]:
    places = Places(folder)
    copy = engines.with_engines(text, parsed(text), folder / "pki", names, places)
    return copy, parsed(copy), places


def test_every_idc_gets_its_own_of_each_engine(tmp_path: Path) -> None:
    _, region, places = written(tmp_path)
    seen: list[str] = []
    for idc in region.spec.idcs:
        of = idc.engines
        assert of.log.kafka and of.kv.tikv and of.registry.etcd and of.mirror.mirrormaker2
        seen += [*of.log.kafka.brokers, *of.kv.tikv.pd, *of.registry.etcd.endpoints]
        assert of.log.kafka.cert_file == str(tmp_path / "pki" / f"{idc.name}.pem")
        assert (of.log.kafka.min_insync_replicas, of.log.kafka.durability) == (1, "flush")
        others = [other.name for other in region.spec.idcs if other.name != idc.name]
        remote = of.mirror.mirrormaker2.remote_brokers
        assert list(remote) == others
        seen += [brokers[0] for brokers in remote.values()]
    routes = engines.routes(region, places)
    assert {(route["source"], route["target"]) for route in routes} == set(engines.pairs(region))
    fra = region.spec.idcs[0].engines.mirror.mirrormaker2
    assert fra is not None
    (to_iad,) = [route for route in routes if (route["source"], route["target"]) == ("fra", "iad")]
    assert [to_iad["listen"]] == fra.remote_brokers["iad"]
    seen += [route["address"] for route in routes]
    assert len(set(seen)) == len(seen) == 9 + 6 + 6
    hosts = engines.certificates(region, ALL)
    assert sorted(hosts) == sorted(
        f"{name}-{e}" for name in hosts_of(region) for e in ("etcd", "kafka")
    )
    assert hosts["fra-kafka"] == ["127.0.0.1"]


def hosts_of(region: Region) -> list[str]:
    return [idc.name for idc in region.spec.idcs]


def test_only_what_is_asked_for_is_run(tmp_path: Path) -> None:
    _, region, places = written(tmp_path, names=("tikv",))
    for idc in region.spec.idcs:
        assert idc.engines.kv.tikv and idc.engines.log.kafka is None
        assert idc.engines.registry.etcd is None and idc.engines.mirror.mirrormaker2 is None
    assert engines.certificates(region, ("tikv",)) == {} and engines.routes(region, places) == []
    beside = Beside(region, tmp_path, tmp_path / "pki", ("tikv",), places)
    assert sorted(beside.names[:3]) == ["fra-pd", "iad-pd", "sin-pd"]  # stores come to a PD
    assert sorted(beside.names[3:]) == ["fra-tikv", "iad-tikv", "sin-tikv"]


def test_every_idc_gets_a_bucket_of_its_own(tmp_path: Path) -> None:
    given = {"endpoint": "https://127.0.0.1:19000", "bucket": "ours", "credentials_file": "/c"}
    text = with_fra(blobs={"s3": given | {"prefix": "mine"}})
    copy, region, places = written(tmp_path, text, ("s3",))
    found = [idc.engines.blobs.s3 for idc in region.spec.idcs]
    fra, iad, _ = found
    assert fra and (fra.endpoint, fra.bucket, fra.prefix) == (given["endpoint"], "ours", "mine")
    assert iad and (iad.bucket, iad.prefix) == ("im-files", None)
    assert len({one.endpoint for one in found if one}) == 3
    assert iad.credentials_file == str(tmp_path / "pki" / "iad-s3.credentials")
    assert engines.certificates(region, ("s3",)) == {
        f"{name}-s3": ["127.0.0.1"] for name in hosts_of(region)
    }
    assert written(tmp_path, copy, ("s3",))[0] == copy  # the copy may be started too
    assert Beside(region, tmp_path, tmp_path / "pki", ("s3",), places).names == [
        "fra-s3", "iad-s3", "sin-s3"
    ]  # fmt: skip


def test_a_bucket_that_is_elsewhere_gives_way_to_one_here(tmp_path: Path) -> None:
    given = {"endpoint": "https://s3.example", "bucket": "ours", "credentials_file": "/c"}
    _, region, places = written(tmp_path, with_fra(blobs={"s3": given}), ("s3",))
    fra = region.spec.idcs[0].engines.blobs.s3
    assert fra and fra.endpoint == f"https://{places.at('fra-s3')}"


def test_mirrormakers_start_after_every_broker_and_end_before(tmp_path: Path) -> None:
    _, region, places = written(tmp_path)
    beside = Beside(region, tmp_path, tmp_path / "pki", ALL, places)
    last = beside.names[-3:]
    assert sorted(last) == ["fra-mm2", "iad-mm2", "sin-mm2"]
    assert [one.kind for one in beside.of("fra")] == ["etcd", "kafka", "pd", "tikv", "mm2"]
    kin = {one.name for one in beside.wiped_with("fra-pd")}
    assert kin == {"fra-pd", "fra-tikv"} == {one.name for one in beside.wiped_with("fra-tikv")}
    assert [one.name for one in beside.wiped_with("fra-kafka")] == ["fra-kafka"]


def test_every_unit_is_known_by_words_of_its_command_that_no_other_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program(Path("/opt/engine/lib"), "1")
    monkeypatch.setattr("imctl.engines.binaries.need", lambda name: program)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    _, region, places = written(tmp_path, names=engines.KNOWN)
    beside = Beside(region, tmp_path, tmp_path / "pki", engines.KNOWN, places)
    commands = {name: set(beside[name].command()) for name in beside.names}
    assert len(commands) == 18
    for name in beside.names:
        marks = set(beside[name].marks)
        assert any(str(beside[name].data) in mark for mark in marks)
        assert [one for one, words in commands.items() if marks <= words] == [name]


def test_a_mirror_that_the_file_says_is_kept(tmp_path: Path) -> None:
    _, region, _ = written(tmp_path, with_fra(mirror="embedded"), ("kafka",))
    fra, iad, _ = region.spec.idcs
    assert fra.engines.mirror.mirrormaker2 is None and iad.engines.mirror.mirrormaker2
    assert [pair for pair in engines.pairs(region) if pair[0] == "fra"] == []


def test_what_the_file_says_of_an_engine_is_kept(tmp_path: Path) -> None:
    kafka = {"kafka": {"brokers": ["127.0.0.1:19092", "127.0.0.1:19093"], "topic_prefix": "chat"}}
    tikv = {"tikv": {"pd": ["127.0.0.1:12379"], "prefix": "mine"}}
    text = with_fra(log=kafka, kv=tikv, mirror="embedded")
    # Alone in its prefix: with MirrorMakers around, all need the same.
    document = yaml.safe_load(text)
    for row in document["spec"]["idcs"][1:]:
        row["engines"] = {"mirror": "embedded"}
    _, region, _ = written(tmp_path, yaml.safe_dump(document), ("kafka", "tikv"))
    fra = region.spec.idcs[0].engines
    assert fra.log.kafka and fra.kv.tikv
    assert (fra.log.kafka.brokers, fra.log.kafka.topic_prefix) == (["127.0.0.1:19092"], "chat")
    assert (fra.kv.tikv.pd, fra.kv.tikv.prefix) == (["127.0.0.1:12379"], "mine")


def test_addresses_stay_for_the_life_of_a_folder(tmp_path: Path) -> None:
    copy, region, places = written(tmp_path)
    routes = engines.routes(region, places)
    places.write()
    again, region, places = written(tmp_path)
    assert again == copy and engines.routes(region, places) == routes
    assert written(tmp_path, copy)[0] == copy  # the copy may be started too


@pytest.mark.parametrize("text", ["[1", '{"fra": 1}', '{"fra": "nowhere"}'])
def test_damaged_addresses_are_one_clear_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "engines.json").write_text(text)
    with pytest.raises(Failed, match=r"engines\.json: expected names and addresses"):
        Places(tmp_path)


def test_no_two_get_one_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a name keeps it or not: nobody listens yet when the next one is chosen."""
    earlier = Places(tmp_path)
    kept = [earlier.at("fra"), earlier.at("iad")]
    earlier.write()
    ports = [int(at.rpartition(":")[2]) for at in kept]
    monkeypatch.setattr("imctl.target.places.PORTS", [*ports, *free_ports(6)])
    places = Places(tmp_path)
    new = [places.unnamed(), places.at("sin"), places.unnamed(), places.at("witness")]
    assert len({*kept, *new}) == len(kept) + len(new)
    assert places.at("fra") == kept[0]


def test_a_port_that_was_chosen_is_not_chosen_at_once_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A broker of Kafka whose ports were asked for in three goes got one of them twice."""
    monkeypatch.setattr("imctl.target.places.PORTS", free_ports(4))
    monkeypatch.setattr("imctl.target.places._lately", deque(maxlen=4))
    found = free_ports(3)
    assert free_ports(1)[0] not in found
    assert free_ports(2) != []  # rather one of those than none


def test_data_are_never_started_on_another_engine(tmp_path: Path) -> None:
    copy, region, _ = written(tmp_path, names=("kafka", "tikv"))
    (tmp_path / "region.yaml").write_text(copy)
    engines.check_same(tmp_path, parsed(THREE))  # there are no data yet
    (tmp_path / "iad" / "data").mkdir(parents=True)
    engines.check_same(tmp_path, region)
    with pytest.raises(Failed, match=r"the log of iad in .* is on Kafka; start it so again"):
        engines.check_same(tmp_path, parsed(THREE))
    kafka_only = written(tmp_path, names=("kafka",))[1]
    with pytest.raises(Failed, match=r"the KV of iad in .* is on TiKV"):
        engines.check_same(tmp_path, kafka_only)
    (tmp_path / "region.yaml").write_text(THREE)
    with pytest.raises(Failed, match=r"the log of iad in .* is on the embedded engine"):
        engines.check_same(tmp_path, kafka_only)


def test_files_stay_where_they_are_once_there_are_any(tmp_path: Path) -> None:
    s3 = {"endpoint": "https://s3", "bucket": "im-1", "credentials_file": "/c"}
    inside, outside = THREE, with_fra(blobs={"s3": s3})
    (tmp_path / "fra" / "data").mkdir(parents=True)
    (tmp_path / "region.yaml").write_text(inside)
    engines.check_same(tmp_path, parsed(outside + "  media: {}\n"))
    (tmp_path / "region.yaml").write_text(inside + "  media: {}\n")
    with pytest.raises(Failed, match=r"the file store of fra in .* is on the embedded engine"):
        engines.check_same(tmp_path, parsed(outside + "  media: {}\n"))


def test_an_engine_that_there_is_not_is_refused() -> None:
    assert engines.chosen("etcd, kafka,etcd") == ("etcd", "kafka")
    assert engines.chosen("") == ()
    with pytest.raises(
        BadInput, match="--engines: expected some of etcd, kafka, tikv, s3, got 'mm2'"
    ):
        engines.chosen("kafka,mm2")


def test_ports_in_a_row_are_free_and_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    first = free_row(6)
    row = range(first, first + 6)
    monkeypatch.setattr("imctl.target.places.PORTS", row)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", row[1]))
        assert free_row(2, {row[3]}) == row[4]
        with pytest.raises(Failed, match=f"no free port from {row[0]} to {row[-1]}"):
            free_row(3, {row[3]})
