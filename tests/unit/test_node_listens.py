"""Where a node listens, when its endpoints are names that only others know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from imcore.errors import BadInput
from services.node.config import NodeConfig, load

REGION = Path(__file__).parents[2] / "regions" / "two-idc.yaml"


@pytest.fixture
def config(tmp_path: Path, pki_dir: Path) -> NodeConfig:
    return load(REGION, "fra", tmp_path, pki_dir, None, False)


def test_at_its_endpoints_when_nothing_is_said(config: NodeConfig) -> None:
    assert config.listener("127.0.0.1:18110") == ("127.0.0.1", 18110)


def test_at_the_host_that_it_is_told_with_the_port_of_the_endpoint(config: NodeConfig) -> None:
    told = replace(config, listen="0.0.0.0")
    assert told.listener("fra.example.invalid:18110") == ("0.0.0.0", 18110)


def test_plain_clients_are_judged_by_where_it_really_listens(tmp_path: Path, pki_dir: Path) -> None:
    with pytest.raises(BadInput, match=r"loopback address, got 0\.0\.0\.0"):
        load(REGION, "fra", tmp_path, pki_dir, None, False, plain_clients=True, listen="0.0.0.0")
