"""The certificate by which the operator speaks to a region, out of a Secret."""

from __future__ import annotations

import base64
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imcore import pki
from imcore.errors import BadInput
from imcore.roles import Role
from imcore.runtime import SystemClock
from imctl import roles
from imctl.reconcile.observed import Object
from imctl.reconcile.peers import Peers, as_folder
from tests.unit.test_operator_objects import region


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pki")
    pki.init(made, {"fra": (), "operator": (), "admin": ()}, datetime.now(UTC))
    return made


def secret(folder: Path, name: str) -> Object:
    files = {"ca.crt": "ca.pem", "tls.crt": f"{name}.pem", "tls.key": f"{name}.key"}
    data = {
        key: base64.b64encode((folder / file).read_bytes()).decode() for key, file in files.items()
    }
    return {"metadata": {"name": "shown"}, "data": data}


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.ADMIN])
def test_the_role_is_the_one_in_the_certificate(folder: Path, role: Role) -> None:
    with as_folder(secret(folder, role)) as made:
        assert roles.shown(made) is role
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
        assert (made / f"{role}.key").read_bytes() == (folder / f"{role}.key").read_bytes()
    assert not made.exists()


def test_what_is_of_no_use_is_said(folder: Path) -> None:
    good = secret(folder, "operator")
    cases = [
        (secret(folder, "fra"), "expected the certificate of one of viewer, operator, admin"),
        (good | {"data": {}}, "Secret shown lacks ca.crt"),
        (good | {"data": good["data"] | {"tls.crt": "eA=="}}, "expected certificates in PEM"),
        (good | {"data": good["data"] | {"tls.crt": "!"}}, "expected certificates in PEM"),
    ]
    for document, why in cases:
        with pytest.raises(BadInput, match=why), as_folder(document):
            raise AssertionError


async def test_each_region_has_an_audit_log_of_its_own(folder: Path, tmp_path: Path) -> None:
    peers = Peers(SystemClock(), tmp_path)
    async with peers.steering("im-fra", region(), secret(folder, "operator")):
        assert (tmp_path / "im-fra" / "two-idc").is_dir()
