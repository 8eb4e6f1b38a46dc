"""Fixtures of every test folder."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imcore import pki

PKI_NAMES = ("fra", "iad", "sin", "witness", "linkproxy", "admin")


@pytest.fixture(scope="session")
def pki_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real pki folder: a CA, a certificate for each of PKI_NAMES, region keys."""
    folder = tmp_path_factory.mktemp("pki")
    pki.init(folder, {name: () for name in PKI_NAMES}, datetime.now(UTC))
    yield folder
