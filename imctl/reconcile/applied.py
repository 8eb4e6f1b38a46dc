"""What was applied for one object and has not changed since, so that it need not be sent again. No
I/O."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import NamedTuple

from imctl.reconcile.objects import hash_of
from imctl.reconcile.observed import Object


class Name(NamedTuple):
    """Of an object that was made."""

    kind: str
    namespace: str
    name: str


class Place(NamedTuple):
    """Where objects are listed."""

    api: str
    kind: str
    namespace: str


class _Known(NamedTuple):
    api: str
    wanted: str  # its hash
    version: str  # the resourceVersion that the API server made of it


class Applied:
    """``kept``: what was left when the rest of its own went; None: not looked at.
    ``said``: the resourceVersion of the object with the status that was written last."""

    def __init__(self) -> None:
        self.kept: frozenset[Hashable] | None = None
        self.said = ""
        self._known: dict[Name, _Known] = {}

    def stands(self, wanted: Object) -> bool:
        """Whether it was applied as it is wanted, and nothing says that it has changed."""
        known = self._known.get(_name(wanted))
        return known is not None and known.wanted == hash_of(wanted)

    def took(self, wanted: Object, made: Object) -> None:
        """``made``: the API server's answer."""
        version = str(made["metadata"].get("resourceVersion", ""))
        self._known[_name(wanted)] = _Known(wanted["apiVersion"], hash_of(wanted), version)

    def forget(self, wanted: Object) -> None:
        """It is to be sent again."""
        self._known.pop(_name(wanted), None)

    def note(self, said: Object | None) -> None:
        """The object with a status that was written; None: there was nothing to write."""
        if said is not None:
            self.said = str(said["metadata"].get("resourceVersion", ""))

    def changed(self, name: Name, version: str) -> bool:
        """It has this resourceVersion now; empty: it is gone. Returns whether that is news."""
        known = self._known.get(name)
        if known is not None and version and known.version == version:
            return False
        self._known.pop(name, None)
        return True

    def listed(self, place: Place, versions: Mapping[str, str]) -> bool:
        """What is there now, by name. Returns whether something of this one's has changed."""
        mine = [name for name in self._known if name[:2] == place[1:]]
        return any([self.changed(name, versions.get(name.name, "")) for name in mine])

    def places(self) -> Iterator[Place]:
        for name, known in self._known.items():
            yield Place(known.api, name.kind, name.namespace)


def _name(document: Object) -> Name:
    metadata = document["metadata"]
    return Name(document["kind"], metadata["namespace"], metadata["name"])
