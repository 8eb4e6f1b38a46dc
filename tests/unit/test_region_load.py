"""Every mistake in a region file gets one line with its place, what was expected, what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from imcore.errors import BadInput
from imcore.region.load import check_text, load_region

REGIONS = Path(__file__).resolve().parents[2] / "regions"
THREE = (REGIONS / "three-idc.yaml").read_text()
TWO = (REGIONS / "two-idc.yaml").read_text()


def problems(text: str) -> list[str]:
    loaded = check_text(text, "r.yaml")
    assert (loaded.region is None) == bool(loaded.problems)
    return loaded.problems


def changed(*pairs: str, base: str = THREE) -> str:
    """The base file with each (old, new) replaced once."""
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in base, old
        base = base.replace(old, new, 1)
    return base


def line_of(text: str, part: str) -> int:
    return next(n for n, line in enumerate(text.splitlines(), 1) if part in line)


@pytest.mark.parametrize("path", sorted(REGIONS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_regions_are_valid(path: Path) -> None:
    assert load_region(path).metadata.name == path.stem


@pytest.mark.parametrize(
    ("old", "new", "field", "says"),
    [
        ("name: iad", "name: Iad", "spec.idcs[1].name", 'expected a name (lowercase'),
        ("partitions: 4", "partitions: none", "spec.partitions", "expected a whole number"),
        ("partitions: 4", "partitions: 0", "spec.partitions", "expected at least 1, got 0"),
        ("partitions: 4", "partitions: yes", "spec.partitions", "expected a number, got true"),
        ("delay_ms: 45", "delay_ms: on", "spec.links[0].delay_ms", "expected a number, got true"),
        ("jitter_ms: 3", "jitter_ms: .inf", "spec.links[0].jitter_ms", "a number, got inf"),
        ("weights: {sin: 1}", "weights: {sin: yes}", "spec.geo.shards[2].weights.sin", "got true"),
        ("weights: {sin: 1}", "weights: {sin: .inf}", "spec.geo.shards[2].weights.sin", "got inf"),
        ("countries: [SG", "asns: [yes], countries: [SG", "spec.geo.shards[2].match.asns[0]", ""),
        ("country: SG", "country: Singapore", "spec.idcs[2].place.country", "two letters"),
        ("127.0.0.1:17302", "17302", "spec.idcs[2].endpoints.peer", 'HOST:PORT, got "17302"'),
        ("127.0.0.1:17302", "h:99999", "spec.idcs[2].endpoints.peer", "a port from 1 to 65535"),
        ("127.0.0.1:17302", "127.0.0.1:17110", "spec.idcs[2].endpoints.peer", "a port of its own"),
        ("127.0.0.1:17302", "localhost:17101", "spec.idcs[2].endpoints.peer", "17101, which spec"),
        ("metadata:", "metadat:", "metadat", "did you mean `metadata`?"),
        ("delay_ms: 45", "dealy_ms: 45", "spec.links[0].dealy_ms", "did you mean `delay_ms`?"),
        ("delay_ms: 45", "jitter: 1", "spec.links[0].delay_ms", "expected a value, got none"),
        ("loss: 0.001", "loss: 0.9", "spec.links[2].loss", "at most 0.5, got 0.9"),
        ("weights: {sin: 1}", "weights: {sib: 1}", "spec.geo.shards[2].weights.sib", "one of fra"),
        ("weights: {sin: 1}", "weights: {sin: 0}", "spec.geo.shards[2].weights", "above 0"),
        ("weights: {sin: 1}", "weights: {sin: -1}", "spec.geo.shards[2].weights.sin", "at least 0"),
        ("fallback: [fra, sin]", "fallback: [fra, x]", "spec.geo.shards[1].fallback[1]", '"x"'),
        ("fallback: [fra, sin]", "fallback: [fra, fra]", "spec.geo.shards[1].fallback[1]", "again"),
        ("default: europe", "default: mars", "spec.geo.default", "(europe, americas, asia)"),
        ("name: asia", "name: europe", "spec.geo.shards[2].name", '"europe" again'),
        ("[SG, CN", "[SG, DE, CN", "spec.geo.shards[2].match.countries[1]", "shard europe"),
        ("[SG, CN", "[SG, SG, CN", "spec.geo.shards[2].match.countries[1]", "shard asia"),
        ("name: sin", "name: fra", "spec.idcs[2].name", "the name of spec.idcs[0]"),
        ("name: sin", "name: viewer", "spec.idcs[2].name", "a name of its own"),
        ("name: sin", "name: admin", "spec.idcs[2].name", "a name of its own"),
        ("name: sin", "name: ca", "spec.idcs[2].name", "a name of its own"),
        ("name: sin", "name: imctl", "spec.idcs[2].name", "a name of its own"),
        ("[iad, sin], delay", "[iad, iad], delay", "spec.links[2].between", "two different"),
        ("[iad, sin], delay", "[sin, fra], delay", "spec.links[2].between", "one link for each"),
        ("[iad, sin], delay", "[iad, x], delay", "spec.links[2].between[1]", "one of fra, iad"),
        ("trusted_proxies: [", 'trusted_proxies: ["x", ', "spec.geo.trusted_proxies[0]", "10.0.0"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(old: str, new: str, field: str, says: str) -> None:
    text = changed(old, new)
    found = [line for line in problems(text) if f": {field}: " in line]
    assert len(found) == 1, problems(text)
    assert found[0].startswith(f"r.yaml:{line_of(THREE, old)}: ")
    assert says in found[0]


def test_unquoted_norway_is_explained() -> None:
    (line,) = problems(changed('"NO"', "NO"))
    assert "countries[15]: expected text, got NO, which YAML reads as the boolean false" in line
    assert line.endswith('put it in quotes: "NO"')


def test_a_duplicate_key_is_an_error_on_its_own_line() -> None:
    text = changed("  partitions: 4\n", "  partitions: 4\n  partitions: 8\n")
    (line,) = problems(text)
    second = line_of(text, "partitions: 8")
    assert line.startswith(f"r.yaml:{second}: spec.partitions: expected one value")
    assert f"the first is on line {second - 1}" in line


def test_all_errors_come_at_once_shape_and_rules_together() -> None:
    text = changed(
        "partitions: 4", "partitions: 0",
        "default: europe", "default: mars",
        "fallback: [fra, iad]", "fallback: [fra, paris]",
    )  # fmt: skip
    fields = [line.split(": ")[1] for line in problems(text)]
    assert fields == ["spec.partitions", "spec.geo.default", "spec.geo.shards[2].fallback[1]"]


def test_two_idcs_need_a_witness() -> None:
    text = changed('  witness: {peer: "127.0.0.1:18302"}  # London\n', "", base=TWO)
    assert any("spec.witness: expected a witness" in line for line in problems(text))


def test_every_pair_needs_a_link() -> None:
    text = THREE.replace("    - {between: [iad, sin]", "    # {between: [iad, sin]")
    (line,) = problems(text)
    assert line.startswith(f"r.yaml:{line_of(text, 'links:')}: spec.links: expected a link between")


def test_ipconfs_take_consecutive_ports() -> None:
    text = changed("    - name: fra\n", "    - name: fra\n      ipconfs: 2\n")
    (found,) = problems(text)
    assert "spec.idcs[0].endpoints.peer" in found and "17102, which" in found, found


def test_files_need_a_listener_of_their_own_where_ipconf_runs_apart() -> None:
    apart = "    - name: fra\n      ipconfs: 1\n"
    (found,) = problems(changed("    - name: fra\n", apart, "spec:\n", "spec:\n  media: {}\n"))
    assert "spec.idcs[0].endpoints.media: expected HOST:PORT, because files stay with the" in found
    ends = 'ipconf: "127.0.0.1:17101"'
    given = changed(
        "    - name: fra\n", apart, "spec:\n", "spec:\n  media: {}\n", ends,
        f'{ends}, media: "127.0.0.1:17177"',
    )  # fmt: skip
    assert problems(given) == []


def test_gateways_take_consecutive_ports() -> None:
    text = changed("    - name: fra\n", "    - name: fra\n      gateways: 20\n")
    text = text.replace("127.0.0.1:17101", "127.0.0.1:17129")
    assert len(problems(text)) == 1
    assert "17129, which spec.idcs[0].endpoints.gateway has too" in problems(text)[0]


def test_no_idc_could_be_taken_out() -> None:
    (line,) = problems(THREE + "  safety: {active_idcs_min: 3}\n")
    assert "spec.safety.active_idcs_min: expected less than the number of IDCs (3)" in line


def test_freeze_windows() -> None:
    window = "  safety: {freeze: [{start: %s, end: %s}]}\n"
    good = window % ('"2026-12-24T00:00:00Z"', '"2026-12-27T00:00:00+01:00"')
    assert problems(THREE + good) == []
    (backwards,) = problems(THREE + window % ('"2026-12-24T00:00:00Z"', '"2026-12-23T00:00:00Z"'))
    assert "freeze[0].end: expected a time after the start" in backwards
    unquoted = problems(THREE + window % ("2026-12-24T00:00:00Z", '"2026-12-25T00:00:00Z"'))
    assert "which YAML reads as a date; put it in quotes" in unquoted[0]


def test_more_replicas_than_other_idcs() -> None:
    (line,) = problems(THREE + "  messages: {ack: replicated, replicas: 3}\n")
    assert "spec.messages.replicas: expected at most 2" in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "r.yaml:1: expected a region file, got an empty one"),
        ("- 1\n", "r.yaml:1: the file: expected a mapping of fields, got a list of 1"),
        ("a: 1\n\tb: 2\n", "r.yaml:2: expected YAML, got a tab; put spaces in its place"),
        ("a: [\n", "r.yaml:2: expected YAML"),
        ("a: &x [*x]\n", "expected YAML, got an alias"),
        ("a: !!python/object:os.system 1\n", "r.yaml:1: expected YAML, got an error"),
        ("x: 2026-99-99\n", "r.yaml:1: expected YAML"),
        ("[" * 5000, "r.yaml:1: expected YAML"),
        ("? [a]\n: b\n", "expected YAML"),
    ],
)
def test_what_is_no_region_file_is_one_clear_line(text: str, says: str) -> None:
    (line,) = problems(text)
    assert line.startswith(says) or says in line
    assert "\n" not in line


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.yaml: expected a region file, got No such file"):
        load_region(tmp_path / "none.yaml")


def test_a_file_of_other_bytes_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="expected UTF-8 text"):
        load_region(tmp_path / "x.yaml")


def test_a_password_in_the_place_of_its_file_is_not_repeated() -> None:
    """It stood in the error, and so in terminals and logs of CI."""
    etcd = "{endpoints: ['h:1'], ca_file: /ca, username: im, password_file: hunter2}"
    text = changed(
        "    - name: fra\n", f"    - name: fra\n      engines: {{registry: {{etcd: {etcd}}}}}\n"
    )
    found = problems(text)
    assert any("etcd.password_file: expected" in line for line in found)
    assert not any("hunter2" in line for line in found)


@pytest.mark.parametrize(
    "value",
    [
        '!!int ""', '!!int "_"', '!!float ""', "!!bool perhaps", "!!timestamp soon", "2026-13-45",
        "0x" + "f" * 5_000, "1" + ":1" * 3_000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("text", ["{}\n", "kind: Region\nspec:\n  {}: 1\n", "a: 1\nspec:\n - {}\n"])
def test_a_value_that_yaml_itself_cannot_read_is_told_on_its_line(text: str, value: str) -> None:
    line = text[: text.index("{}")].count("\n") + 1
    loaded = check_text(text.format(value), "region.yaml")
    assert loaded.region is None
    assert any(problem.startswith(f"region.yaml:{line}: expected ") for problem in loaded.problems)
    assert all(len(problem) < 300 for problem in loaded.problems)


def test_two_webhooks_have_two_names() -> None:
    """They would share one note of how far they have come, and what one is owed be skipped."""
    hook = "{name: push, url: 'https://h/', secret_file: /s, events: [message]}"
    text = THREE.rstrip("\n") + f"\n  webhooks:\n    - {hook}\n    - {hook}\n"
    [found] = problems(text)
    assert "spec.webhooks[1].name: expected a name of its own" in found and '"push" again' in found
