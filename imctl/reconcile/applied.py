"""What was applied for one object and has not changed since, so that it need not be sent again; and
whose an object is that has the name of one. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import NamedTuple

from imctl.reconcile.objects import MANAGED_BY, MANAGER, hash_of
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
        self._ours: set[Name] = set()  # as far as anything says: an object of the name is ours

    def stands(self, wanted: Object) -> bool:
        """Whether it was applied as it is wanted, and nothing says that it has changed."""
        known = self._known.get(_name(wanted))
        return known is not None and known.wanted == hash_of(wanted)

    def is_ours(self, wanted: Object) -> bool:
        """Whether what has its name is known to be, so that it need not be looked at."""
        return _name(wanted) in self._ours

    def saw(self, wanted: Object, found: Object | None) -> str:
        """``found``: what has its name; None: nothing has. Why it is not written over: what is
        theirs would go with an object of ours; empty: it may be."""
        owners = {each["uid"] for each in wanted["metadata"].get("ownerReferences", ())}
        if found is None or is_ours(found, owners):
            self._ours.add(_name(wanted))
            return ""
        return (
            f"{wanted['kind']} {wanted['metadata']['name']} is somebody else's: delete it, or "
            f"label it {MANAGED_BY}={MANAGER} to have it taken over"
        )

    def took(self, wanted: Object, made: Object) -> None:
        """``made``: the API server's answer."""
        version = str(made["metadata"].get("resourceVersion", ""))
        self._ours.add(_name(wanted))
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
        if not version:  # what has the name next may be another's
            self._ours.discard(name)
        return True

    def listed(self, place: Place, versions: Mapping[str, str]) -> bool:
        """What is there now, by name. Returns whether something of this one's has changed."""
        mine = [name for name in self._known if name[:2] == place[1:]]
        return any([self.changed(name, versions.get(name.name, "")) for name in mine])

    def places(self) -> Iterator[Place]:
        for name, known in self._known.items():
            yield Place(known.api, name.kind, name.namespace)


def is_ours(found: Object, owners: Collection[str]) -> bool:
    """Whether an object was made by an operator, or for one of these (uids)."""
    metadata = found["metadata"]
    if metadata.get("labels", {}).get(MANAGED_BY) == MANAGER:
        return True
    return any(each["uid"] in owners for each in metadata.get("ownerReferences", ()))


def _name(document: Object) -> Name:
    metadata = document["metadata"]
    return Name(document["kind"], metadata["namespace"], metadata["name"])
