"""The region file. Any text gives either a region or at least one problem, each on a line of the
file; nothing is raised. A region that was taken is taken again when it is written out."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from fuzz.target import Target
from imcore.region.load import check_text

REGIONS = Path(__file__).parents[2] / "regions"
_PROBLEM = re.compile(r"region\.yaml:\d+: .*expected ", re.DOTALL)


def check(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    loaded = check_text(text, "region.yaml")
    assert (loaded.region is None) == bool(loaded.problems), "neither a region nor a problem"
    lines = len(text.splitlines()) + 1  # to YAML a carriage return ends one, too
    for problem in loaded.problems:
        assert _PROBLEM.match(problem), problem
        assert int(problem.split(":")[1]) <= lines, problem
    if loaded.region is not None:
        document = loaded.region.model_dump(mode="json", exclude_unset=True)
        again = check_text(yaml.safe_dump(document), "region.yaml")
        assert again.region == loaded.region, again.problems or "written out, it is another region"


def seeds() -> list[bytes]:
    return [path.read_bytes() for path in sorted(REGIONS.glob("*.yaml"))]


WORDS = [
    b"!!int ", b"!!float ", b"!!bool ", b"!!timestamp ", b"!!binary ", b"!!null ", b"!!set ",
    b"!!omap ", b"!!pairs ", b"!!python/name:os.system", b"&a ", b"*a", b"<<: ", b"? ", b"- ",
    b".inf", b".nan", b"1e400", b"-1", b"0x", b"2026-13-45", b"12:30:45", b"=", b"~", b"NO",
    b"apiVersion", b"kind", b"metadata", b"spec", b"idcs", b"links", b"geo", b"shards", b"witness",
    b"client", b"messages", b"engines", b"trusted_proxies", b"0.0.0.0/0", b"::/0", b"{", b"[",
]  # fmt: skip
TARGET = Target("region", check, seeds, words=WORDS, bytes_max=8192, cpu_s=3.0)
