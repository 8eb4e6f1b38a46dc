"""`engines:` in region files: what is accepted, and which line a mistake is found on."""

from __future__ import annotations

from pathlib import Path

import pytest

from imcore.errors import BadInput
from imcore.region.load import check_text
from imcore.region.model import Etcd, Region
from imcore.region.rules import registry_prefix
from services.node.engines import settings_of

THREE = (Path(__file__).resolve().parents[2] / "regions" / "three-idc.yaml").read_text()
PEER = {"fra": 'peer: "127.0.0.1:17102"}\n', "iad": 'peer: "127.0.0.1:17202"}\n'}
TLS = "ca_file: /etc/ca.pem"


def text(fra: str, iad: str = "embedded") -> str:
    found = THREE
    for name, registry in (("fra", fra), ("iad", iad)):
        engines = f"      engines:\n        registry: {registry}\n"
        found = found.replace(PEER[name], PEER[name] + engines)
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


def test_secrets_are_read_from_files_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("s3cret\n")
    etcd = Etcd(endpoints=["e:1"], username="im", password_file=str(tmp_path / "pw"))
    settings = settings_of(etcd, "p/")
    assert settings.password == "s3cret" and "s3cret" not in repr(settings)
    with pytest.raises(BadInput, match=r"/none: expected a readable file, got No such file"):
        settings_of(Etcd(endpoints=["e:1"], ca_file="/none"), "p/")
