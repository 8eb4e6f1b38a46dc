"""The table of who may call what: whole, and as it is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from imcore.errors import BadInput, Refused
from imcore.proto import front_pb2, ipconf_pb2, peer_pb2
from imcore.roles import TABLE, Role, refusal
from imctl import auditview, roles
from imctl.drill import model

METHODS = {
    f"/{service.full_name}/{method.name}"
    for file in (peer_pb2, front_pb2, ipconf_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
PEERS = frozenset({"fra", "iad", "witness"})
DRILLS = Path(__file__).resolve().parents[2] / "regions" / "drills"


def allowed(name: str) -> set[str]:
    calls = {method for method in METHODS if not refusal(name, method, PEERS)}
    return {call.removeprefix("/im.v1.") for call in calls}


def test_every_method_of_every_service_is_in_the_table_and_nothing_else() -> None:
    listed = {f"/im.v1.{service}/{method}" for service in TABLE for method in TABLE[service]}
    assert listed == METHODS


def test_a_viewer_may_only_read() -> None:
    reads = {"Registry/Info", "Registry/Get", "Registry/Range", "Registry/Watch"}
    assert allowed("viewer") == {"Admin/Status", "Archives/Closed", *reads}


def test_an_operator_may_swap_beside_what_a_viewer_may() -> None:
    more = {"Registry/CompareAndSwap", "Admin/StateHash", "Users/Kick"}
    assert allowed("operator") - allowed("viewer") == more


def test_an_admin_may_call_all_that_is_not_among_idcs_alone() -> None:
    kinds = ("Logs", "Peer", "Media", "Front", "Ipconf")
    among_idcs = {name for name in allowed("fra") if name.split("/")[0] in kinds}
    assert allowed("admin") == {name.removeprefix("/im.v1.") for name in METHODS} - among_idcs
    assert not {"Admin/Status", "Admin/Fault", "Engines/MoveKv"} & allowed("fra")


@pytest.mark.parametrize("name", ["", "linkproxy", "sin", "root", "Admin", "viewer.fra"])
def test_other_names_may_call_nothing(name: str) -> None:
    assert allowed(name) == set()


def test_a_person_is_no_peer_whatever_a_region_file_says() -> None:
    assert refusal("viewer", "/im.v1.Logs/Tail", {"viewer"})
    assert refusal("viewer", "/im.v1.Registry/CompareAndSwap", {"viewer"})


@pytest.mark.parametrize("method", ["/im.v1.Admin/Burn", "/im.v1.Other/Status", "/Admin/x"])
def test_what_is_not_listed_is_open_to_nobody(method: str) -> None:
    assert "is open to nobody" in refusal("admin", method, PEERS)


def test_a_refusal_names_the_role_shown_and_the_one_needed() -> None:
    assert refusal("viewer", "/im.v1.Admin/Fault", PEERS) == (
        "Admin.Fault needs the role admin; the certificate shown has the role viewer"
    )
    assert refusal("linkproxy", "/im.v1.Peer/Probe", PEERS) == (
        "Peer.Probe needs the certificate of an IDC of this region; "
        "the certificate shown has the name linkproxy"
    )


def test_the_highest_role_whose_key_is_there_is_shown_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(roles.VARIABLE, raising=False)
    for role in Role:
        (tmp_path / f"{role}.key").touch()
        assert roles.shown(tmp_path) is role
    monkeypatch.setenv(roles.VARIABLE, "viewer")
    assert roles.shown(tmp_path) is Role.VIEWER
    with pytest.raises(Refused, match=r"Wiping needs the role admin; .* the role viewer"):
        roles.demand(tmp_path, Role.ADMIN, "Wiping")
    monkeypatch.setenv(roles.VARIABLE, "root")
    with pytest.raises(BadInput, match="IMCTL_AS"):
        roles.shown(tmp_path)


def test_an_operator_runs_the_drills_that_only_move_traffic() -> None:
    needed = {path.stem: model.load_drill(path).role_needed() for path in model.listed(DRILLS)}
    harmless = {name for name, role in needed.items() if role is Role.OPERATOR}
    assert harmless == {"planned-switchover", "rolling-evacuation"}
    assert len(needed) > len(harmless)


def test_the_audit_shows_who_it_was_and_as_what() -> None:
    row = {"at_ms": 1, "writer": "imctl", "by": "drill", "user": "ann", "sentence": "x"}
    assert auditview.shown(row)["by"] == "drill (ann)"  # of before there were roles
    assert auditview.shown({**row, "certificate": "operator"})["by"] == "drill (ann as operator)"
