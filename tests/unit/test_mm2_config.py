"""MirrorMaker 2's settings as they come from a region file."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from imcore.errors import BadInput
from imcore.region.load import check_text
from imcore.region.model import Region
from imctl.engines import mm2_check, mm2_config, properties
from imctl.engines.mirror_watch import GIVEN_UP
from imctl.engines.mm2 import MirrorMaker, secrets_file
from imctl.testing.mm2 import gave_up

THREE = (Path(__file__).resolve().parents[2] / "regions" / "three-idc.yaml").read_text()
TLS: dict[str, Any] = {"ca_file": "/k/ca.pem", "cert_file": "/k/c.pem", "key_file": "/k/c.key"}
USER: dict[str, Any] = {"username": "im", "password_file": "/run/pw"}
REMOTE = {"fra": ["proxy:1", "proxy:2"]}


def region(prefix: str = "im", **kafka: object) -> Region:
    """Three IDCs on Kafka; iad's MirrorMaker reaches fra elsewhere than fra itself does."""
    document = yaml.safe_load(THREE)
    for number, idc in enumerate(document["spec"]["idcs"]):
        log = {"brokers": [f"k{number}:9092"], "topic_prefix": prefix, **kafka}
        remote = REMOTE if idc["name"] == "iad" else {}
        idc["engines"] = {
            "log": {"kafka": log},
            "mirror": {"mirrormaker2": {"remote_brokers": remote}},
        }
    loaded = check_text(yaml.safe_dump(document), "r.yaml")
    assert loaded.region is not None, loaded.problems
    return loaded.region


def settings(found: Region, idc: str = "iad") -> dict[str, str]:
    flows = mm2_config.flows_into(found, idc)
    return mm2_config.settings(flows, mm2_config.credentials_of(found, idc, Path("/m/s")))


def test_all_flows_lead_into_the_target_and_nowhere_else() -> None:
    found = settings(region())
    assert found["clusters"] == "iad,fra,sin"
    assert {k: v for k, v in found.items() if "->" in k} == {
        "fra->iad.enabled": "true",
        "sin->iad.enabled": "true",
    }
    assert found["iad.bootstrap.servers"] == "k1:9092"
    assert found["fra.bootstrap.servers"] == "proxy:1,proxy:2"
    assert found["sin.bootstrap.servers"] == "k2:9092"


def test_records_are_fetched_at_once_and_the_workers_own_topics_twice_a_second() -> None:
    found = settings(region())
    assert {k: v for k, v in found.items() if k.endswith("fetch.min.bytes")} == {
        "fra.consumer.fetch.min.bytes": "1",
        "sin.consumer.fetch.min.bytes": "1",
        "iad.fetch.min.bytes": "1048576",
        "iad.consumer.fetch.min.bytes": "1048576",
    }
    assert found["iad.consumer.fetch.max.wait.ms"] == "500"


def test_a_small_machine_copies_in_fewer_transactions_and_nothing_else_differs() -> None:
    found = region()
    flows = mm2_config.flows_into(found, "iad")
    shown = mm2_config.credentials_of(found, "iad", Path("/m/s"))
    usual = mm2_config.settings(flows, shown)
    small = mm2_config.settings(flows, shown, mm2_config.SMALL_MACHINE)
    assert {k: (usual[k], small[k]) for k in usual if usual[k] != small[k]} == {
        "transaction.boundary.interval.ms": ("50", "250"),
        **{
            f"{source}.consumer.fetch.{name}": values
            for source in ("fra", "sin")
            for name, values in (("min.bytes", ("1", "65536")), ("max.wait.ms", ("500", "250")))
        },
        "iad.fetch.max.wait.ms": ("500", "1500"),
        "iad.consumer.fetch.max.wait.ms": ("500", "1500"),
    }
    assert usual.keys() == small.keys() and mm2_check.problems(small, flows) == []


def test_it_scans_no_archives_for_plugins() -> None:
    """MirrorMaker itself reads the name as it stands, its workers behind their cluster's prefix."""
    found = settings(region())
    assert found["plugin.discovery"] == found["iad.plugin.discovery"] == "service_load"


def test_it_shows_the_targets_certificate_to_all_and_writes_no_secret_down() -> None:
    found = settings(region(**TLS, **USER))
    for idc in ("fra", "iad", "sin"):
        assert found[f"{idc}.security.protocol"] == "SASL_SSL"
        assert found[f"{idc}.ssl.truststore.location"] == "/k/ca.pem"
        assert found[f"{idc}.ssl.keystore.key"] == "${directory:/k:c.key}"
        assert 'password="${file:/m/s:password}"' in found[f"{idc}.sasl.jaas.config"]
    assert found["config.providers"] == "file,directory"


def test_what_is_made_in_the_target_has_the_targets_number_of_replicas() -> None:
    factors = {v for k, v in settings(region()).items() if k.endswith("replication.factor")}
    assert factors == {"3"}
    one = region(replication_factor=1, min_insync_replicas=1, durability="flush")
    factors = {v for k, v in settings(one).items() if k.endswith("replication.factor")}
    assert factors == {"1"}


@pytest.mark.parametrize("prefix", ["im", "im-2.prod"])
def test_what_is_generated_is_valid(prefix: str) -> None:
    found = region(prefix, **TLS, **USER)
    flows = mm2_config.flows_into(found, "sin")
    assert mm2_check.problems(settings(found, "sin"), flows) == []


def test_other_mistakes_are_one_sentence() -> None:
    with pytest.raises(BadInput, match="expected one of fra, iad, sin, got 'ams'"):
        mm2_config.flows_into(region(), "ams")
    embedded = check_text(THREE, "r.yaml").region
    assert embedded is not None
    with pytest.raises(BadInput, match=r"^fra: expected `mirror:"):
        mm2_config.flows_into(embedded, "fra")


def test_the_target_must_have_what_a_source_wants() -> None:
    plain, tls = region(), region(**TLS)
    idcs = [tls.spec.idcs[0], *plain.spec.idcs[1:]]
    mixed = tls.model_copy(update={"spec": tls.spec.model_copy(update={"idcs": idcs})})
    with pytest.raises(BadInput, match=r"^iad: expected `ca_file:` .* brokers of fra want it"):
        mm2_config.flows_into(mixed, "iad")


# ------------------------------------------------------------------------ files and process


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a=b\n", {"a": "b"}),
        ("# c\n! d\n\n  a : b c\n", {"a": "b c"}),
        ("a\\=b=c\\\\.d", {"a=b": "c\\.d"}),
        ("a=b,\\\n   c\n", {"a": "b,c"}),
        ("a\\u003d b\n", {"a=": "b"}),
        ("a\n", {"a": ""}),
    ],
)
def test_properties_are_read_as_java_reads_them(text: str, found: dict[str, str]) -> None:
    assert properties.parsed(text) == found


def test_properties_survive_being_written() -> None:
    found = settings(region("im.x", **TLS, **USER)) | {"odd": 'a\\"b\nc = # d', " lead": "  x"}
    assert properties.parsed(properties.text(found)) == found


def test_its_files_are_its_owners_and_hold_what_java_needs(tmp_path: Path) -> None:
    password = tmp_path / "pw"
    password.write_text('a"b\\c d\nsecond line\n')
    found = region(**TLS, username="im", password_file=str(password))
    folder = tmp_path / "iad-mm2"
    mirror = MirrorMaker(
        folder,
        mm2_config.flows_into(found, "iad"),
        mm2_config.credentials_of(found, "iad", secrets_file(folder)),
        password,
    )
    mirror.prepare()
    mirror.prepare()  # at every start
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert 'a"b' not in mirror.settings_file.read_text()
    quoted = properties.parsed(mirror.secrets_file.read_text())["password"]
    assert quoted == 'a\\"b\\\\c d'  # within the quotes of Kafka's login module


def test_a_missing_password_names_the_file_and_not_the_password(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"pw: expected a file with a password, got No such file"):
        mm2_config.secrets_text(tmp_path / "pw")
    (tmp_path / "pw").write_text("\n")
    with pytest.raises(BadInput, match="on its first line, got none"):
        mm2_config.secrets_text(tmp_path / "pw")


def test_a_task_that_was_given_up_is_seen_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "mm2.log"
    assert not gave_up(log)
    log.write_text(f"x\n{GIVEN_UP}\n")
    assert gave_up(log)
    assert not gave_up(log, since=log.stat().st_size)
