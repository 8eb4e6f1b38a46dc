"""`engines:` in region files: what is accepted, and which line a mistake is found on."""

from __future__ import annotations

from pathlib import Path

import pytest

from imcore.errors import BadInput
from imcore.region.load import check_text
from imcore.region.model import S3, Etcd, Region
from imcore.region.rules import blobs_prefix, kv_prefix, registry_prefix
from services.engines.s3.signing import Credentials
from services.node.external import etcd_settings, s3_settings

THREE = (Path(__file__).resolve().parents[2] / "regions" / "three-idc.yaml").read_text()
ENDPOINTS = {"fra": 'metrics: "127.0.0.1:17103"}\n', "iad": 'metrics: "127.0.0.1:17203"}\n'}
TLS = "ca_file: /etc/ca.pem"


def text(fra: str, iad: str = "embedded") -> str:
    found = THREE
    for name, registry in (("fra", fra), ("iad", iad)):
        engines = f"      engines:\n        registry: {registry}\n"
        found = found.replace(ENDPOINTS[name], ENDPOINTS[name] + engines)
    return found


def with_engines(**engines: str) -> str:
    """``fra="{kv: ...}"``: the region file with these `engines:`."""
    found = THREE
    for name, port in (("fra", "17103"), ("iad", "17203"), ("sin", "17303")):
        endpoints = f'metrics: "127.0.0.1:{port}"}}\n'
        assert endpoints in found
        if name in engines:
            found = found.replace(endpoints, f"{endpoints}      engines: {engines[name]}\n")
    return found


def region(*registries: str) -> Region:
    loaded = check_text(text(*registries), "r.yaml")
    assert loaded.region is not None, loaded.problems
    return loaded.region


def test_embedded_is_the_default_and_can_be_said() -> None:
    loaded = region("embedded")
    assert all(idc.engines.registry.etcd is None for idc in loaded.spec.idcs)


def test_an_etcd_is_read_with_all_that_it_needs() -> None:
    loaded = region(
        "{etcd: {endpoints: ['10.0.0.1:2379', '10.0.0.2:2379'], ca_file: /etc/ca.pem, "
        "cert_file: /etc/c.pem, key_file: /etc/c.key, username: im, password_file: /run/pw}}"
    )
    fra, iad, _ = loaded.spec.idcs
    etcd = fra.engines.registry.etcd
    assert etcd is not None and etcd.endpoints == ["10.0.0.1:2379", "10.0.0.2:2379"]
    assert iad.engines.registry.etcd is None
    assert registry_prefix(loaded, fra) == "imctl/three-idc/fra/"


def test_one_etcd_may_serve_several_under_prefixes_of_their_own() -> None:
    loaded = region("{etcd: {endpoints: ['e:1'], prefix: a}}", "{etcd: {endpoints: ['e:1']}}")
    assert registry_prefix(loaded, loaded.spec.idcs[0]) == "a/"


@pytest.mark.parametrize(
    ("registry", "field", "says"),
    [
        ("postgres", "", 'expected `embedded`, or `etcd:` with its `endpoints:`, got "postgres"'),
        ("{}", "", "expected `embedded`, or `etcd:`"),
        ("{etcd: {}}", ".etcd.endpoints", "add `endpoints:`"),
        ("{etcd: {endpoints: []}}", ".etcd.endpoints", "at least 1 of them"),
        ("{etcd: {endpoints: [e]}}", ".etcd.endpoints[0]", 'expected HOST:PORT, got "e"'),
        ("{etcd: {endpoint: ['e:1']}}", ".etcd.endpoint", "did you mean `endpoints`?"),
        (
            "{etcd: {endpoints: ['e:1'], ca_file: ca.pem}}",
            ".etcd.ca_file",
            'expected a file\'s path from / on, got "ca.pem"',
        ),
        (
            f"{{etcd: {{endpoints: ['e:1'], {TLS}, cert_file: /c.pem}}}}",
            ".etcd.cert_file",
            "add `key_file:`",
        ),
        (
            "{etcd: {endpoints: ['e:1'], cert_file: /c.pem, key_file: /k.pem}}",
            ".etcd.cert_file",
            "add `ca_file:`",
        ),
        (
            f"{{etcd: {{endpoints: ['e:1'], {TLS}, username: im}}}}",
            ".etcd.username",
            "add `password_file:`",
        ),
        (
            "{etcd: {endpoints: ['e:1'], username: im, password_file: /p}}",
            ".etcd.username",
            "add `ca_file:`",
        ),
        ("{etcd: {endpoints: ['e:1'], password: x}}", ".etcd.password", "the unknown field"),
        ("{etcd: {endpoints: ['e:1'], prefix: 'a b'}}", ".etcd.prefix", "expected a key prefix"),
    ],
)
def test_a_mistake_is_named_with_its_line(registry: str, field: str, says: str) -> None:
    source = text(registry)
    line = 1 + next(i for i, row in enumerate(source.splitlines()) if "registry: " in row)
    found = check_text(source, "r.yaml").problems
    assert any(
        one.startswith(f"r.yaml:{line}: spec.idcs[0].engines.registry{field}: ") and says in one
        for one in found
    ), found


def test_two_idcs_on_the_same_keys_are_no_two_registries() -> None:
    shared = "{etcd: {endpoints: ['e:1'], prefix: im}}"
    (found,) = check_text(text(shared, shared), "r.yaml").problems
    assert (
        "spec.idcs[1].engines.registry.etcd.endpoints[0]: expected a registry of its own" in found
    )
    assert "which fra has too" in found


def test_keys_below_those_of_another_idc_are_its_keys_too() -> None:
    outer, inner = (f"{{etcd: {{endpoints: ['e:1'], prefix: {name}}}}}" for name in ("a", "a/b"))
    (found,) = check_text(text(outer, inner), "r.yaml").problems
    assert "got e:1 with the prefix a/b/, and fra has a/" in found


KAFKA = "log: {kafka: {brokers: ['%s:1'], %s}}"
THREE_KAFKAS = {name: f"{{{KAFKA % (name, '')}}}" for name in ("fra", "iad", "sin")}


def test_kafka_mirrormaker_and_tikv_are_read_with_their_defaults() -> None:
    mirror = "mirror: {mirrormaker2: {remote_brokers: {iad: ['p:1']}}}"
    engines = f"{{kv: {{tikv: {{pd: ['d:2379']}}}}, {KAFKA % ('fra', '')}, {mirror}}}"
    loaded = check_text(with_engines(**THREE_KAFKAS | {"fra": engines}), "r.yaml")
    assert loaded.region is not None, loaded.problems
    fra, iad, _ = loaded.region.spec.idcs
    kafka = fra.engines.log.kafka
    assert kafka is not None and fra.engines.kv.tikv is not None
    assert (kafka.topic_prefix, kafka.replication_factor, kafka.min_insync_replicas) == ("im", 3, 2)
    assert kafka.durability == "replicated"
    assert kv_prefix(loaded.region, fra) == "imctl/three-idc/fra/"
    assert fra.engines.mirror.mirrormaker2 is not None
    assert fra.engines.mirror.mirrormaker2.remote_brokers == {"iad": ["p:1"]}
    assert iad.engines.mirror.mirrormaker2 is None and iad.engines.kv.tikv is None


@pytest.mark.parametrize(
    ("fra", "field", "says"),
    [
        ("{kv: tikv}", ".kv", 'expected `embedded`, or `tikv:` with its `pd:`, got "tikv"'),
        ("{log: {}}", ".log", "expected `embedded`, or `kafka:` with its `brokers:`"),
        ("{mirror: mm2}", ".mirror", "`mirrormaker2:` with its `remote_brokers:` or `{}`"),
        ("{mirror: {mirrormaker2: }}", ".mirror", "`mirrormaker2:` with its"),
        ("{kv: {tikv: {pd: []}}}", ".kv.tikv.pd", "at least 1 of them"),
        ("{kv: {tikv: {pds: ['e:1']}}}", ".kv.tikv.pds", "did you mean `pd`?"),
        (f"{{{KAFKA % ('e', 'topic_prefix: a_b')}}}", ".log.kafka.topic_prefix", "a topic prefix"),
        (f"{{{KAFKA % ('e', 'durability: disk')}}}", ".log.kafka.durability", "'replicated' or"),
        (
            "{kv: {tikv: {pd: ['p:2379', 'p:99999']}}}",
            ".kv.tikv.pd[1]",
            "expected a port from 1 to 65535, got 99999",
        ),
        (
            f"{{{KAFKA % ('e', 'replication_factor: 2, min_insync_replicas: 3')}}}",
            ".log.kafka.min_insync_replicas",
            "expected at most 2, the replication factor, got 3",
        ),
        (
            f"{{{KAFKA % ('e', 'replication_factor: 1, min_insync_replicas: 1')}}}",
            ".log.kafka.durability",
            "say `durability: flush`",
        ),
        (
            f"{{{KAFKA % ('e', 'cert_file: /c.pem, ca_file: /a.pem')}}}",
            ".log.kafka.cert_file",
            "add `key_file:`",
        ),
        (
            f"{{{KAFKA % ('e', 'username: im, password_file: /p')}}}",
            ".log.kafka.username",
            "add `ca_file:`",
        ),
        (
            f"{{{KAFKA % ('e', '')}, mirror: {{mirrormaker2: {{}}}}}}",
            ".mirror.mirrormaker2",
            "expected a log on Kafka in every IDC, got another log at iad, sin",
        ),
    ],
)
def test_a_mistake_about_another_engine_is_named_with_its_line(
    fra: str, field: str, says: str
) -> None:
    source = with_engines(fra=fra)
    line = 1 + next(i for i, row in enumerate(source.splitlines()) if "engines: " in row)
    found = check_text(source, "r.yaml").problems
    assert any(
        one.startswith(f"r.yaml:{line}: spec.idcs[0].engines{field}: ") and says in one
        for one in found
    ), found


@pytest.mark.parametrize(
    ("remote", "field", "says"),
    [
        ("{fra: ['e:1']}", ".fra", 'expected one of iad, sin, got "fra"'),
        ("{lhr: ['e:1']}", ".lhr", 'expected one of iad, sin, got "lhr"'),
        ("{iad: []}", ".iad", "HOST:PORT of at least one broker"),
    ],
)
def test_a_mirrormaker_reaches_the_other_idcs_only(remote: str, field: str, says: str) -> None:
    mirror = f"mirror: {{mirrormaker2: {{remote_brokers: {remote}}}}}"
    fra = f"{{{KAFKA % ('fra', '')}, {mirror}}}"
    (found,) = check_text(with_engines(**THREE_KAFKAS | {"fra": fra}), "r.yaml").problems
    at = "spec.idcs[0].engines.mirror.mirrormaker2.remote_brokers"
    assert f"{at}{field}: " in found and says in found


def test_the_port_of_an_engine_is_one() -> None:
    """What cannot be dialled was found by the IDC that did not start."""
    engines = (
        "{registry: {etcd: {endpoints: ['e:0']}}, log: {kafka: {brokers: ['e:65536']}}, "
        "mirror: {mirrormaker2: {remote_brokers: {iad: ['e:70000']}}}}"
    )
    found = check_text(with_engines(fra=engines), "r.yaml").problems
    says = "expected a port from 1 to 65535, got "
    assert sorted(line.rpartition(says)[2] for line in found if says in line) == [
        "0", "65536", "70000",
    ]  # fmt: skip


def test_a_mirrormaker_needs_one_topic_prefix() -> None:
    fra = f"{{{KAFKA % ('fra', 'topic_prefix: chat')}, mirror: {{mirrormaker2: {{}}}}}}"
    (found,) = check_text(with_engines(**THREE_KAFKAS | {"fra": fra}), "r.yaml").problems
    assert "expected one topic_prefix in all IDCs" in found and '"chat" at fra' in found


def test_no_idc_is_named_like_a_part_of_the_topics_that_a_mirrormaker_reads() -> None:
    mirror = "mirror: {mirrormaker2: {}}"
    kafkas = {
        name: f"{{{KAFKA % (name, 'topic_prefix: eu.fra')}, {mirror}}}" for name in THREE_KAFKAS
    }
    (found,) = check_text(with_engines(**kafkas), "r.yaml").problems
    assert "spec.idcs[0].engines.mirror.mirrormaker2: " in found and "no part of" in found


def test_no_two_idcs_share_topics_or_keys() -> None:
    shared = f"{{{KAFKA % ('e', '')}, kv: {{tikv: {{pd: ['d:1'], prefix: im}}}}}}"
    found = check_text(with_engines(fra=shared, iad=shared), "r.yaml").problems
    assert len(found) == 2
    assert any("iad" not in one and "a KV of its own, got d:1" in one for one in found)
    assert any(
        "a log of its own, got e:1 with the prefix im., which fra has" in one for one in found
    )


BUCKET = "endpoint: 'https://s3:9000', bucket: im-1, credentials_file: /etc/s3"


def with_buckets(fra: str, iad: str = BUCKET, media: str = "") -> str:
    found = with_engines(fra=f"{{blobs: {{s3: {{{fra}}}}}}}", iad=f"{{blobs: {{s3: {{{iad}}}}}}}")
    return found + (f"  media: {{{media}}}\n" if media else "")


def test_buckets_are_read_with_all_that_they_need() -> None:
    loaded = check_text(with_buckets(BUCKET), "r.yaml")
    assert loaded.region is not None, loaded.problems
    fra, iad, sin = loaded.region.spec.idcs
    s3 = fra.engines.blobs.s3
    assert s3 is not None and (s3.endpoint, s3.region) == ("https://s3:9000", "us-east-1")
    assert sin.engines.blobs.s3 is None
    assert blobs_prefix(loaded.region, iad) == "imctl/three-idc/iad/"


@pytest.mark.parametrize(
    ("fra", "says"),
    [
        ("bucket: im-1, credentials_file: /s", "add `endpoint:`"),
        (
            BUCKET.replace("https://s3:9000", "s3:9000"),
            "blobs.s3.endpoint: expected https://HOST:PORT",
        ),
        (
            BUCKET.replace("https://s3:9000", "https://a:b@s3:9000"),
            "blobs.s3.endpoint: expected https://HOST:PORT",
        ),
        (
            BUCKET.replace("https://s3:9000", "https://s3/im"),
            "blobs.s3.endpoint: expected https://HOST:PORT",
        ),
        (BUCKET.replace("bucket: im-1", "bucket: I"), "blobs.s3.bucket: expected a bucket"),
        (BUCKET.replace("/etc/s3", "SECRET"), "got something else, not shown here"),
        (BUCKET + ", secret_key: x", "the unknown field"),
        (
            BUCKET.replace("https", "http") + ", ca_file: /ca",
            "blobs.s3.ca_file: expected an `endpoint: https://...` beside it, got http://s3:9000",
        ),
    ],
)
def test_a_mistake_about_a_bucket_is_named(fra: str, says: str) -> None:
    found = check_text(with_buckets(fra), "r.yaml").problems
    assert len(found) == 1 and says in found[0] and "SECRET" not in found[0], found


def test_no_two_idcs_share_keys_of_a_bucket() -> None:
    shared = f"{BUCKET}, prefix: im"
    (found,) = check_text(with_buckets(shared, shared), "r.yaml").problems
    assert "a place for files of its own, got https://s3:9000/im-1 with the prefix im/" in found


def test_a_file_in_a_bucket_is_no_larger_than_one_object_may_be() -> None:
    most = 5 << 30
    of_user = f"user_bytes_max: {2 * most}"
    media = f"bytes_max: {most}, {of_user}"
    assert check_text(with_buckets(BUCKET, media=media), "r.yaml").region
    media = f"bytes_max: {most + 1}, {of_user}"
    (found,) = check_text(with_buckets(BUCKET, media=media), "r.yaml").problems
    assert "spec.media.bytes_max: expected at most 5368709120" in found


def test_a_user_has_room_for_one_file_at_least() -> None:
    (found,) = check_text(with_buckets(BUCKET, media="bytes_max: 2000000000"), "r.yaml").problems
    assert "spec.media.user_bytes_max: expected at least `bytes_max` (2000000000)" in found


@pytest.mark.parametrize(
    "text",
    ["", "SECRET", "[other]\na = SECRET\n", "[default]\naws_access_key_id = a\n",
     "[default]\naws_access_key_id =\naws_secret_access_key = SECRET\n", "[default\nSECRET\n"],
)  # fmt: skip
def test_a_credentials_file_that_is_none_is_said_without_what_it_has(
    tmp_path: Path, text: str
) -> None:
    file = tmp_path / "credentials"
    file.write_text(text)
    s3 = S3(endpoint="https://s3", bucket="im-1", credentials_file=str(file))
    with pytest.raises(BadInput, match=r"credentials: expected `\[default\]` with") as raised:
        s3_settings(s3, "fra", "p/")
    assert "SECRET" not in str(raised.value) and raised.value.__cause__ is None


def test_a_credentials_file_is_as_aws_tools_write_it(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text(
        "# of the bucket\n[other]\nregion = x\n[default]\naws_access_key_id = AKIA1\n"
        "aws_secret_access_key = a%b/c+d==\n"
    )
    s3 = S3(endpoint="https://s3", bucket="im-1", credentials_file=str(file))
    settings = s3_settings(s3, "fra", "p/")
    assert settings.credentials == Credentials("AKIA1", "a%b/c+d==")
    assert "a%b" not in repr(settings)


def test_secrets_are_read_from_files_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("s3cret\n")
    etcd = Etcd(endpoints=["e:1"], username="im", password_file=str(tmp_path / "pw"))
    settings = etcd_settings(etcd, "p/")
    assert settings.password == "s3cret" and "s3cret" not in repr(settings)
    with pytest.raises(BadInput, match=r"/none: expected a readable file, got No such file"):
        etcd_settings(Etcd(endpoints=["e:1"], ca_file="/none"), "p/")
