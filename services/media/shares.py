"""How many bytes of an IDC's files are whose. Pure.

A file counts once for each user who has uploaded it here, under however many names; not for those
for whom it was only fetched from another IDC. Users are known by a digest: a start counts anew from
the names of notes, in which a user's id does not fit.
"""

from __future__ import annotations

import hashlib
from collections import Counter

BY = "by."  # notes that say whose a key is: a start reads no record


def owner_of(uid: str) -> str:
    return hashlib.blake2b(uid.encode(), digest_size=16).hexdigest()


def by_note(owner: str, key: str) -> str:
    return f"{BY}{owner}.{key}"


def owners_in(notes: set[str], key_prefix: str) -> set[str]:
    """Whose a file with these notes is. A note without its key is left of who died in between."""
    found = (note.split(".") for note in notes if note.startswith(BY))
    return {part[1] for part in found if len(part) == 3 and f"{key_prefix}{part[2]}" in notes}


class Shares:
    """``owner``: as of ``owner_of``."""

    def __init__(self) -> None:
        self._bytes: Counter[str] = Counter()
        self._owners: dict[str, set[str]] = {}  # by hash

    def of(self, owner: str) -> int:
        return self._bytes[owner]

    def came(self, owner: str, size: int) -> None:
        """So many bytes more, or fewer, that are no file yet."""
        self._bytes[owner] += size
        if not self._bytes[owner]:
            del self._bytes[owner]

    def has(self, owner: str, sha256: str) -> bool:
        return owner in self._owners.get(sha256, ())

    def add(self, owner: str, sha256: str, size: int) -> None:
        self.are(self._owners.get(sha256, set()) | {owner}, sha256, size)

    def are(self, owners: set[str], sha256: str, size: int) -> None:
        """All who have uploaded this file; of one that is gone nobody."""
        before = self._owners.pop(sha256, set())
        for owner in before - owners:
            self.came(owner, -size)
        for owner in owners - before:
            self.came(owner, size)
        if owners:
            self._owners[sha256] = owners
