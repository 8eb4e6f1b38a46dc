"""Who of a huge group is here is the same, whether it is looked up anew or kept up to date."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.ports import Audience
from services.state.reached import Reached, ReachedGroups
from services.state.session import Record
from services.state.table import SessionTable

UIDS = [f"u{number:03}" for number in range(60)]
MEMBERS = Audience("g:huge", tuple(uid for number, uid in enumerate(UIDS) if number % 3))


def shown(reached: Reached) -> list[object]:
    records = {
        (record.uid, record.device, record.connection)
        for part in reached.slices
        for record in part.records
    }
    unpacking, plain = (
        sorted(
            (gateway, number)
            for part in reached.slices
            for gateway, numbers in getattr(part, which).items()
            for number in numbers
        )
        for which in ("unpacking", "plain")
    )
    counts = (reached.users, reached.connected, reached.unpacking > 0)
    return [records, unpacking, plain, counts]


steps = st.tuples(
    st.sampled_from(UIDS), st.sampled_from(("phone", "desk")),
    st.sampled_from(("comes", "connects", "away", "ends")), st.booleans(),
)  # fmt: skip


@given(st.lists(st.lists(steps, max_size=30), max_size=12))
def test_it_is_kept_up_to_date(rounds: list[list[tuple[str, str, str, bool]]]) -> None:
    table, number = SessionTable(), 0
    groups = ReachedGroups(table)
    for changes in rounds:
        for uid, device, what, unpacks in changes:
            number += 1
            record = table.of_device(uid, device)
            if what == "comes":
                gateway = f"gw-{number % 2}"
                record = Record(f"s{number}", uid, device, number, gateway, number)
                record.unpacks = unpacks
                table.put(record)
            elif record is None:
                continue
            elif what == "ends":
                record.connected = False
                table.remove(record)
            else:
                record.connected = what == "connects"
                table.tell(record)
        assert shown(groups.of(MEMBERS)) == shown(Reached(MEMBERS, table))
    assert groups.lookups <= 1


def test_after_many_changes_all_are_looked_up() -> None:
    table = SessionTable()
    groups = ReachedGroups(table)
    for each in (150, 150, 1_000):
        groups.of(MEMBERS)
        for number in range(each):
            table.put(Record(f"s{number}", UIDS[number % 60], "phone", number, "gw", number))
    assert groups.of(MEMBERS).users == 40
    assert groups.lookups == 2


@given(st.lists(st.one_of(st.integers(1, 40), st.sampled_from(UIDS)), max_size=30))
def test_who_joins_is_added_where_nobody_else_is_looked_at(steps: list[int | str]) -> None:
    table = SessionTable()
    groups = ReachedGroups(table)
    audience = Audience("g:huge", tuple(UIDS[:20]))
    coming = [uid for uid in UIDS if uid not in audience.uids]
    for number, step in enumerate(steps):
        if isinstance(step, int):
            audience.joined += coming[:step]
            del coming[:step]
        else:
            table.put(Record(f"s{number}", step, "phone", number, "gw", number))
        named = set(audience.uids) | set(audience.joined)
        found = [record.uid for part in groups.of(audience).slices for record in part.records]
        assert sorted(found) == sorted(record.uid for record in table.of_users(named))
        assert groups.of(audience).users == len(found)
    assert groups.lookups <= 1
