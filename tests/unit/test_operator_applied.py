"""What the operator does not send again, and what it learns has changed."""

from __future__ import annotations

from typing import Any

from imctl.reconcile.applied import Applied, Name, Place

NAME = Name("Service", "im-fra", "fra-idc-peer")
PLACE = Place("v1", "Service", "im-fra")


def service(port: int = 1) -> dict[str, Any]:
    metadata = {"name": NAME.name, "namespace": NAME.namespace}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"port": port}}


def known(version: str = "7") -> Applied:
    applied = Applied()
    applied.took(service(), {"metadata": {"resourceVersion": version}})
    return applied


def test_it_stands_until_something_else_is_wanted_or_it_is_another() -> None:
    applied = known()
    assert applied.stands(service()) and not applied.stands(service(2))
    assert not applied.changed(NAME, "7") and applied.stands(service())
    assert applied.changed(NAME, "8") and not applied.stands(service())


def test_what_is_gone_or_was_never_applied_is_news() -> None:
    applied = known()
    assert applied.changed(NAME, "") and not applied.stands(service())
    assert applied.changed(NAME, "7")


def test_a_list_tells_what_was_changed_or_deleted() -> None:
    applied = known()
    assert set(applied.places()) == {PLACE}
    assert not applied.listed(PLACE, {NAME.name: "7", "other": "3"})
    assert not applied.listed(PLACE._replace(namespace="im-dub"), {})
    assert applied.stands(service())
    assert applied.listed(PLACE, {NAME.name: "8"}) and not applied.stands(service())
    assert known().listed(PLACE, {})


def test_what_the_api_server_did_not_take_does_not_stand() -> None:
    applied = known()
    applied.forget(service())
    assert not applied.stands(service()) and not set(applied.places())
