"""Which fronts have sessions of which users."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imcore.proto import client_pb2 as pb
from imcore.proto import front_pb2 as front
from imcore.region.model import Limits
from imcore.runtime import SystemClock
from imcore.words import Origin
from services.split.fronts import Fronts
from services.split.links import FrontLink
from services.split.pipe import Pipe
from services.split.where import Where

UIDS = [f"u{number}" for number in range(5)]
NOTES = st.lists(st.tuples(st.sampled_from(UIDS), st.integers(0, 3), st.booleans()), max_size=60)


@given(NOTES, st.lists(st.sampled_from(UIDS), unique=True), st.integers(0, 3))
def test_it_is_what_looking_at_every_front_would_find(
    notes: list[tuple[str, int, bool]], asked: list[str], goes: int
) -> None:
    where, devices = Where[int](), {number: set[str]() for number in range(4)}

    def agrees() -> None:
        found = {n: here for n in devices if (here := [u for u in asked if u in devices[n]])}
        assert where.of(asked) == found

    for uid, number, here in notes:
        where.note(uid, number, here)
        (devices[number].add if here else devices[number].discard)(uid)
        agrees()
    where.gone(goes, sorted(devices[goes]))
    devices[goes].clear()
    agrees()


def _change(uid: str, device: str, epoch: int, over: bool = False) -> front.Up:
    caller = front.Caller(id=f"{uid}.{device}", uid=uid, device=device, connection_epoch=epoch)
    change = front.SessionChange(caller=caller, shard="europe", connected=not over, over=over)
    return front.Up(session=change)


def test_a_core_finds_users_wherever_their_sessions_are() -> None:
    fronts = Fronts("fra", pb.Stamp, lambda: 0, lambda: 0, lambda: None, SystemClock(), Limits())
    fronts.origin = Origin("fra", 1)
    one, two, again = (
        FrontLink(front.Hello(gateway=name), Pipe()) for name in ("one", "two", "two")
    )
    fronts._add(one)
    fronts._add(two)

    def found(*uids: str) -> dict[str, list[str]]:
        return {link.name: here for link, here in fronts._of(uids)}

    fronts._up(one, _change("ann", "phone", 1))
    fronts._up(one, _change("ann", "web", 1))
    fronts._up(two, _change("bob", "phone", 1))
    fronts._up(two, _change("ann", "tablet", 1))
    assert found("ann", "bob", "carl") == {"one": ["ann"], "two": ["ann", "bob"]}
    fronts._up(one, _change("ann", "web", 1, over=True))
    assert found("ann") == {"one": ["ann"], "two": ["ann"]}
    fronts._up(one, _change("ann", "phone", 1, over=True))
    assert found("ann") == {"two": ["ann"]}
    fronts._remove(two)
    assert found("ann", "bob") == {}
    fronts._add(again)
    fronts._up(again, _change("bob", "phone", 2))
    fronts._remove(two)  # its stream ends late
    assert found("bob") == {"two": ["bob"]}
