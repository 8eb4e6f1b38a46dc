"""What each role of people may change: of the changes of traffic, and in a registry.

A registry is a dumb acceptor, whose records ``imctl`` swaps like any proposer. So what an operator
may swap is judged there by what it would make of the record: whoever holds an operator's key need
not use ``imctl``.
"""

from __future__ import annotations

from imcore.audit import anchor_from_json
from imcore.roles import Role
from services.control.acceptor import PREFIX, ZERO, Record, Slot, decode, encode
from services.control.anchoring import anchor_key
from services.control.operations import operation_key
from services.control.rules import Change, Kind
from services.policy.document import POLICY_KEY, IdcState, from_json

OPERATIONS = operation_key("")
OWN_AUDIT = anchor_key("imctl")  # of before machines had chains of their own
OWN_AUDITS = anchor_key("imctl@")  # no IDC can be called so
LEAP_MAX = 1_000_000  # a ballot or epoch further ahead is nobody's at work, and may bar all others


def role_for(change: Change) -> Role:
    """The least role that may ask for this change."""
    if change.kind == Kind.RETIRE or change.overrides:
        return Role.ADMIN
    return Role.OPERATOR


def swap_refusal(key: bytes, before: bytes | None, after: bytes, name: str) -> str:
    """What of this swap is not an operator's to do, as the subject of a sentence; empty: nothing.
    ``before``: what the swap replaces, None: nothing. ``name``: the caller's, which begins the
    names of its ballots."""
    if not key.startswith(f"{PREFIX}/".encode()):
        return "Writing anything but the records of the policy and of operations"
    if before is None:
        return "Making a record"
    try:
        old, new = decode(before), decode(after)
        if encode(new) != after:  # more than a record, or another spelling of one
            return "Writing what is no record"
        if _rest(new) != _rest(old):
            return "Changing who is a member"
        if old.slots.keys() - new.slots.keys():
            return "Taking a value out of the registry"
        # By how they are written: 1, 1.0 and true are equal.
        changed = [each for each in new.slots if repr(new.slots[each]) != repr(old.slots.get(each))]
        return next((why for each in changed if (why := _slot_refusal(each, old, new, name))), "")
    except (ValueError, TypeError, AttributeError):
        return "Writing what is no record"


def _rest(record: Record) -> str:
    return repr((record.joined, record.members, record.floor))


def _slot_refusal(key: str, old: Record, new: Record, name: str) -> str:
    was, now = old.slot(key), new.slots[key]
    if key not in (POLICY_KEY, OWN_AUDIT) and not key.startswith((OPERATIONS, OWN_AUDITS)):
        return f"Writing {key}"
    if not now.promised.proposer.startswith(f"{name}."):
        return "Acting under another's ballot"
    counter: object = now.promised.counter
    if type(counter) is not int or counter - was.promised.counter > LEAP_MAX:
        return "A ballot far ahead of all others"
    if _promises(was, now):
        return ""
    if not (now.accepted == now.promised >= was.promised and now.accepted > was.accepted):
        return "Going back behind a promise"
    return _value_refusal(key, was, now)


def _promises(was: Slot, now: Slot) -> bool:
    return now.promised > was.promised and (now.accepted, now.value) == (was.accepted, was.value)


def _value_refusal(key: str, was: Slot, now: Slot) -> str:
    if now.value is None:
        return "" if was.accepted == ZERO or was.value is None else f"Removing {key}"
    if key == OWN_AUDIT or key.startswith(OWN_AUDITS):
        lower = was.value and anchor_from_json(now.value).seq < anchor_from_json(was.value).seq
        return "Lowering the anchor of an audit log" if lower else ""
    if key == POLICY_KEY:
        return _policy_refusal(was.value, now.value)
    return ""


def _policy_refusal(before: bytes | None, after: bytes) -> str:
    new = from_json(after)
    old = from_json(before) if before else None
    if old is not None and new.epoch < old.epoch:
        return "Going back to an older policy"
    if new.epoch - (old.epoch if old else 0) > LEAP_MAX:
        return "An epoch far ahead"
    for idc, row in new.idcs.items():
        if row.state is IdcState.RETIRED and (old is None or old.state(idc) is not row.state):
            return f"Retiring {idc}"
    return ""
