"""What each role of people may change: of the changes of traffic, and in a registry; and what an
IDC may in the registry of another one.

A registry is a dumb acceptor, whose records ``imctl`` and all IDCs swap like any proposer. So what
somebody may swap is judged there by what it would make of the record: whoever holds a key need not
use our programs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from imcore.audit import anchor_from_json
from imcore.roles import Role
from services.control.acceptor import PREFIX, ZERO, Record, Slot, decode, encode, register
from services.control.anchoring import anchor_key
from services.control.levels import LEVEL_KEY
from services.control.operations import operation_key
from services.control.rules import Change, Kind
from services.policy.document import POLICY_KEY, IdcState, from_json

OPERATIONS = operation_key("")
AUDITS = anchor_key("")
OWN_AUDIT = anchor_key("imctl")  # of before machines had chains of their own
OWN_AUDITS = anchor_key("imctl@")  # no IDC can be called so
LEAP_MAX = 1_000_000  # a ballot or epoch further ahead is nobody's at work, and may bar all others
# An IDC's own counter goes on for as long as its process lives, also over records that know little.
PEER_LEAP_MAX = 1 << 32


def role_for(change: Change) -> Role:
    """The least role that may ask for this change."""
    if change.kind == Kind.RETIRE or change.overrides:
        return Role.ADMIN
    return Role.OPERATOR


def swap_refusal(key: bytes, before: bytes | None, after: bytes, name: str) -> str:
    """What of this swap is not an operator's to do, as the subject of a sentence; empty: nothing.
    ``before``: what the swap replaces, None: nothing. ``name``: the caller's, which begins the
    names of its ballots."""

    def slot(each: str, old: Record, new: Record) -> str:
        if each not in (POLICY_KEY, OWN_AUDIT) and not each.startswith((OPERATIONS, OWN_AUDITS)):
            return f"Writing {each}"
        was, now = old.slot(each), new.slots[each]
        why = _ballot_refusal(was, now, name, was.promised.counter + LEAP_MAX)
        return why or ("" if _promises(was, now) else _value_refusal(each, was, now, False))

    return _swapped(key, before, after, _same_members, slot)


def peer_swap_refusal(
    key: bytes, before: bytes | None, after: bytes, name: str, own: Collection[str],
    shared: Collection[str],
) -> str:  # fmt: skip
    """The same of the IDC ``name``, in the registry of another one. ``own``: the keys that it alone
    writes; ``shared``: those that all IDCs do, beside those of this package.

    Of a key that is another's it may say again what this registry holds already: so, one acceptor
    after the other, by the process that has it, a change is settled whose IDC is gone."""

    def members(old: Record, new: Record) -> bool:
        """It may enter a new store of its own."""
        mine = new.members.get(name)
        entered = register(old, name, mine.store) if mine is not None else old
        return _same_members(old, new) or _same_members(entered, new)

    def slot(each: str, old: Record, new: Record) -> str:
        was, now = old.slot(each), new.slots[each]
        if why := _ballot_refusal(was, now, name, old.highest().counter + PEER_LEAP_MAX):
            return why
        everybodys = each in (POLICY_KEY, LEVEL_KEY, *shared) or each.startswith(OPERATIONS)
        if _promises(was, now) or (now.value == was.value and not everybodys):
            return ""
        if not everybodys and each not in own:
            return f"Writing {each}"
        return _value_refusal(each, was, now, True)

    return _swapped(key, before, after, members, slot)


def _swapped(
    key: bytes,
    before: bytes | None,
    after: bytes,
    members: Callable[[Record, Record], bool],
    slot: Callable[[str, Record, Record], str],
) -> str:
    if not key.startswith(f"{PREFIX}/".encode()):
        return "Writing anything but records"
    if before is None:
        return "Making a record"
    try:
        old, new = decode(before), decode(after)
        if encode(new) != after:  # more than a record, or another spelling of one
            return "Writing what is no record"
        if not members(old, new):
            return "Changing who is a member"
        if old.slots.keys() - new.slots.keys():
            return "Taking a value out of the registry"
        # By how they are written: 1, 1.0 and true are equal.
        changed = [each for each in new.slots if repr(new.slots[each]) != repr(old.slots.get(each))]
        return next((why for each in changed if (why := slot(each, old, new))), "")
    except (ValueError, TypeError, AttributeError, RecursionError):
        return "Writing what is no record"


def _same_members(old: Record, new: Record) -> bool:
    return _rest(old) == _rest(new)


def _rest(record: Record) -> str:
    return repr((record.joined, record.members, record.floor))


def _ballot_refusal(was: Slot, now: Slot, name: str, counter_max: int) -> str:
    if not now.promised.proposer.startswith(f"{name}."):
        return "Acting under another's ballot"
    counter: object = now.promised.counter
    if type(counter) is not int or counter > counter_max:
        return "A ballot far ahead of all others"
    accepts = now.accepted == now.promised >= was.promised and now.accepted > was.accepted
    return "" if accepts or _promises(was, now) else "Going back behind a promise"


def _promises(was: Slot, now: Slot) -> bool:
    return now.promised > was.promised and (now.accepted, now.value) == (was.accepted, was.value)


def _value_refusal(key: str, was: Slot, now: Slot, retires: bool) -> str:
    """``retires``: the policy may retire an IDC."""
    if now.value is None:
        return "" if was.accepted == ZERO or was.value is None else f"Removing {key}"
    if key.startswith(AUDITS):
        new = anchor_from_json(now.value)  # also of the first: rubbish would be anchored over never
        lower = was.value and new.seq < anchor_from_json(was.value).seq
        return "Lowering the anchor of an audit log" if lower else ""
    if key == POLICY_KEY:
        return _policy_refusal(was.value, now.value, retires)
    return ""


def _policy_refusal(before: bytes | None, after: bytes, retires: bool) -> str:
    new = from_json(after)
    old = from_json(before) if before else None
    if old is not None and new.epoch < old.epoch:
        return "Going back to an older policy"
    if new.epoch - (old.epoch if old else 0) > LEAP_MAX:
        return "An epoch far ahead"
    for idc, row in new.idcs.items():
        retired = row.state is IdcState.RETIRED and (old is None or old.state(idc) is not row.state)
        if retired and not retires:
            return f"Retiring {idc}"
    return ""
