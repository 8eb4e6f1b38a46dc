"""Who may hold a connection where there are only so many places."""

from __future__ import annotations

from imcore.places import Entry, Places

TAKEN = Entry[str](True)


def test_whoever_asks_for_nothing_for_longest_gives_his_place_up() -> None:
    places = Places[str](3, 3)
    assert [places.come(one, one) for one in "abc"] == [TAKEN] * 3
    places.asks("a")
    assert places.come("d", "d") == Entry(True, "b")
    places.rests("a")
    assert places.come("e", "e") == Entry(True, "c")
    assert places.come("f", "f") == Entry(True, "d")
    assert places.come("g", "g") == Entry(True, "a")
    assert len(places) == 3


def test_nobody_who_asks_for_something_gives_it_up() -> None:
    places = Places[str](2, 2)
    for one in "ab":
        places.come(one, one)
        places.asks(one)
    assert places.come("c", "c") == Entry(False)
    places.go("a")
    assert places.come("c", "c") == TAKEN and len(places) == 2


def test_one_address_takes_no_place_of_another() -> None:
    places = Places[int](10, 4)
    assert places.come(0, "ann").taken
    for one in range(1, 100):
        assert places.come(one, "eve") == Entry(True, one - 4 if one > 4 else None)
    assert len(places) == 5
    for one in range(96, 100):
        places.asks(one)
    assert places.come(100, "eve") == Entry(False)  # ann's is idle, and stays
    assert places.come(101, "bob") == Entry(True)


def test_a_shared_address_has_no_bound_of_its_own() -> None:
    places = Places[int](10, 2)
    for one in range(10):
        assert places.come(one, "proxy", shared=True) == Entry(True)
    assert places.come(10, "proxy", shared=True) == Entry(True, 0)


def test_nothing_is_kept_of_those_who_have_gone() -> None:
    places = Places[int](2, 1)
    for one in range(20):
        places.come(one, f"address {one % 3}")
        places.asks(one)
        places.rests(one)
    for one in [*range(20), *range(20)]:
        places.go(one)
        places.rests(one)
        places.asks(one)
    assert len(places) == 0
    assert not any((places._count, places._idle, places._idle_of, places._address))
