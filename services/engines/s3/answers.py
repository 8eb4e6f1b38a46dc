"""What an S3 server says: its errors as ours, and its lists. Pure."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple
from xml.etree import ElementTree

from imcore.errors import DiskFull, NotTrusted, Overloaded, Unavailable

NO_BUCKET = "NoSuchBucket"
# As wrong as a password: another region is named than the bucket's.
_OTHER_REGION = {
    "AuthorizationHeaderMalformed",
    "PermanentRedirect",
    "IllegalLocationConstraintException",
}
_FULL = {
    "InsufficientCapacity",
    "InsufficientStorage",
    "QuotaExceeded",
    "XMinioAdminBucketQuotaExceeded",
    "XMinioStorageFull",
}
_SLOWER = {"SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "Throttling", "Busy"}
_TEXT_MAX = 200
RETRY_MS = 1_000
FULL_RETRY_MS = 60_000


class Listed(NamedTuple):
    key: str
    size: int


class Page(NamedTuple):
    """``next``: where the list goes on; empty at its end."""

    objects: list[Listed]
    next: str


class Fault(NamedTuple):
    """``code``: the server's own word; empty where it said none, as to HEAD."""

    status: int
    code: str
    message: str

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.status), self.code, self.message) if part)


def _tree(body: bytes) -> ElementTree.Element:
    """Of a server that showed its certificate; expat itself limits what entities become. Raises
    ParseError."""
    return ElementTree.fromstring(body)  # noqa: S314


def _local(name: str) -> str:
    """Servers differ in the name space."""
    return name.rpartition("}")[2]


def fault_of(status: int, body: bytes) -> Fault:
    found: dict[str, str] = {}
    with suppress(ElementTree.ParseError):  # of a proxy in front of it, say
        found = {_local(each.tag): each.text or "" for each in _tree(body)}
    return Fault(status, found.get("Code", ""), found.get("Message", "")[:_TEXT_MAX])


def passing(fault: Fault) -> bool:
    """It may go well a moment later."""
    return fault.status in (429, 500, 502, 503, 504) and fault.code not in _FULL


class Who(NamedTuple):
    """``full``: "fra's S3 at HOST". ``told``: "the file store of fra", as clients know it."""

    full: str
    told: str


def error_of(fault: Fault, who: Who) -> Unavailable:
    full, told = who
    if fault.status == 507 or fault.code in _FULL:
        return DiskFull(f"{full} has no room: {fault}", FULL_RETRY_MS, f"{told} is full")
    if fault.code in _SLOWER or fault.status == 429:
        text = "has too much to do"
        return Overloaded(f"{full} {text}: {fault}", RETRY_MS, f"{told} {text}")
    if fault.status in (401, 403) or fault.code in _OTHER_REGION:
        return NotTrusted(f"{full} refuses: {fault}", RETRY_MS, f"{told} refuses")
    return Unavailable(f"{full} cannot: {fault}", RETRY_MS, f"{told} cannot do this now")


def page_of(body: bytes) -> Page:
    """Raises ValueError."""
    objects: list[Listed] = []
    more = False
    token = ""
    try:
        for each in _tree(body):
            match _local(each.tag):
                case "Contents":
                    fields = {_local(field.tag): field.text or "" for field in each}
                    objects.append(Listed(fields["Key"], int(fields["Size"])))
                case "IsTruncated":
                    more = each.text == "true"
                case "NextContinuationToken":
                    token = each.text or ""
    except (ElementTree.ParseError, KeyError) as error:
        raise ValueError(f"no list of objects: {error!r}") from error
    if more and not token:
        raise ValueError("a list that is cut, and does not say where it goes on")
    return Page(objects, token if more else "")
