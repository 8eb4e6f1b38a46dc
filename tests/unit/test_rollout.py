"""A rollout over a target that is a model: every step, every gate, and a kill at every point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import pytest

from imcore.errors import ImError, OutcomeUnknown, Unavailable
from imctl.errors import Denied, Failed
from imctl.rollout.driver import SILENT_S, Driver
from imctl.rollout.gates import failing, kind_of
from imctl.rollout.ground import told
from imctl.rollout.next import Do, Seen, World, next_step
from imctl.rollout.record import Kind, Rollout, State, from_json
from imctl.target.base import Rolling
from services.policy.document import IdcPolicy, IdcState, Policy

S = IdcState
OLD, NEW = "old", "new"
IDCS = ("fra", "iad", "sin")


class Killed(BaseException):
    """`kill -9` of imctl."""


@dataclass
class Unit:
    state: IdcState | None = S.ACTIVE
    ramp: int = 100
    runs: bool = True
    region: str = OLD
    since: float = -10.0  # when its process started
    sessions: int = 40
    answers: bool = True
    starts: int = 0
    down_at: float | None = None
    alarms: tuple[str, ...] = ()
    lag_ms: int = 20
    gateways: str = ""  # in pods of their own, with that file; empty: it has none
    rolled: int = 99  # of them, since the last change
    rolls_at: float = 0.0  # the next one


@dataclass
class Model:
    """The target, its policy, and the disk. Time passes in ``sleep`` only."""

    units: dict[str, Unit] = field(
        default_factory=lambda: {
            **{name: Unit() for name in IDCS},
            "witness": Unit(state=None, sessions=0),
        }
    )
    record: str = ""
    own: str = OLD
    operation: tuple[str, str] | None = None
    clock: float = 0.0
    refusing: Callable[[str, str], str] = lambda kind, idc: ""
    bad: set[str] = field(default_factory=set)  # do not serve with the new file
    gateways: int = 3  # of an IDC
    gateway_s: float = 2.0
    stuck_at: int = 99  # so many gateways are replaced, and no more
    taken_back: bool = False  # somebody else takes back what is applied
    pausing: bool = False
    kill_at: int = -1
    points: int = 0
    log: list[str] = field(default_factory=list)

    # ------------------------------------------------------------------------- the world goes on

    def _tick(self, seconds: float) -> None:
        self.clock += seconds
        for name, unit in self.units.items():
            if unit.state is S.DRAINING:
                unit.sessions = max(0, unit.sessions - 20)
                if unit.sessions == 0:
                    unit.state, self.operation = S.DRAINED, None
            moving = self.operation == ("failback", name)
            if moving and unit.state is S.RECOVERING and self.serving(name):
                unit.state, unit.ramp = S.ACTIVE, 10
            elif moving and unit.state is S.ACTIVE:
                unit.ramp = 50 if unit.ramp == 10 else 100
                unit.sessions = 40 * unit.ramp // 100
                self.operation = None if unit.ramp == 100 else self.operation
            if unit.rolled < min(self.gateways, self.stuck_at) and self.clock >= unit.rolls_at:
                unit.rolled, unit.rolls_at = unit.rolled + 1, self.clock + self.gateway_s
            if unit.state is None:
                continue
            away = not unit.runs and unit.down_at is not None and self.clock - unit.down_at > 3
            if away and unit.state is not S.FAILED:
                unit.state = S.FAILED
            elif unit.state is S.FAILED and self.serving(name):
                unit.state = S.RECOVERING

    def serving(self, name: str) -> bool:
        unit = self.units[name]
        broken = name in self.bad and unit.region == NEW
        return unit.runs and unit.answers and self.clock - unit.since >= 1 and not broken

    def out(self) -> list[str]:
        return [
            name
            for name in IDCS
            if self.units[name].state not in (S.ACTIVE, S.CORDONED)
            or self.units[name].ramp < 100
            or not self.units[name].runs
        ]

    # ------------------------------------------------------------------------------ Ground

    def _point(self, what: str) -> None:
        self.points += 1
        if self.points == self.kill_at:
            raise Killed(what)

    async def look(self, rollout: Rollout) -> dict[str, Seen]:
        return {name: self._seen(name, rollout.wanted) for name in self.units}

    def _seen(self, name: str, wanted: str) -> Seen:
        unit = self.units[name]
        return Seen(
            runs=unit.runs,
            current=unit.region == wanted,
            lacks=unit.gateways not in ("", wanted),
            rolling=self._rolling(unit),
            answers=unit.runs and unit.answers,
            serving=self.serving(name),
            state=unit.state,
            ramp=unit.ramp,
            moving=self.operation is not None and self.operation[1] == name,
            sessions=unit.sessions,
            lag_ms=unit.lag_ms,
            alarms=unit.alarms,
        )

    def _rolling(self, unit: Unit) -> Rolling | None:
        left = self.gateways - unit.rolled
        return Rolling(f"{left} are left", str(left)) if left > 0 else None

    async def apply(self, name: str, wanted: str) -> None:
        unit = self.units[name]
        self._point(f"before the apply at {name}")
        assert self.serving(name) and unit.region == wanted, "gateways come after their IDC"
        self.log.append(f"apply {name}")
        if not self.taken_back and unit.gateways != wanted:
            unit.gateways, unit.rolled, unit.rolls_at = wanted, 0, self.clock + self.gateway_s
        self._point(f"after the apply at {name}")

    async def _ask(self, kind: str, idc: str, act: Callable[[Unit], None]) -> str:
        self._point(f"before {kind} {idc}")
        if self.operation is not None:
            return "one-move-at-a-time"
        if refusal := self.refusing(kind, idc):
            return refusal
        act(self.units[idc])
        self.log.append(f"{kind} {idc}")
        self._point(f"after {kind} {idc}")
        return ""

    async def drain(self, idc: str, rollout: Rollout) -> str:
        def act(unit: Unit) -> None:
            assert unit.state in (S.ACTIVE, S.CORDONED, S.DRAINING)
            assert [name for name in self.out() if name != idc and self.units[name].answers] == []
            unit.state, self.operation = S.DRAINING, ("drain", idc)

        return await self._ask("drain", idc, act)

    async def failback(self, idc: str) -> str:
        def act(unit: Unit) -> None:
            assert unit.state in (S.DRAINED, S.RECOVERING, S.ACTIVE)
            unit.state = S.RECOVERING if unit.state is not S.ACTIVE else unit.state
            self.operation = ("failback", idc)

        return await self._ask("failback", idc, act)

    async def cordon(self, idc: str) -> str:
        def act(unit: Unit) -> None:
            unit.state = S.CORDONED

        return await self._ask("cordon", idc, act)

    async def restart(self, name: str, wanted: str) -> None:
        unit = self.units[name]
        self._point(f"before the stop of {name}")
        if unit.runs and unit.state is not None:
            assert unit.sessions == 0, "an IDC was stopped with clients"
            assert unit.state not in (S.ACTIVE, S.CORDONED, S.DRAINING)
        unit.runs, unit.down_at = False, self.clock
        self._point(f"while {name} is down")
        unit.runs, unit.region, unit.since, unit.down_at = True, wanted, self.clock, None
        unit.starts += 1
        self.log.append(f"restart {name}")
        self._point(f"after the start of {name}")

    async def adopt(self, wanted: str) -> None:
        self._point("before the adoption")
        self.own = wanted
        self._point("after the adoption")

    def write(self, rollout: Rollout) -> None:
        self._point("before a write")
        self.record = rollout.to_json()
        self._point("after a write")

    def told_to_pause(self) -> bool:
        return self.pausing

    def last_words(self, unit: str) -> str:
        return "error: no such file"

    def now(self) -> float:
        return self.clock

    def wall_ms(self) -> int:
        return int(self.clock * 1000)

    async def sleep(self, seconds: float) -> None:
        self._tick(seconds)


def rollout(**changed: Any) -> Rollout:
    basis = Rollout("deploy-2", Kind.DEPLOY, NEW, OLD, ("sin", "fra", "iad", "witness"), soak_s=2.0)
    return replace(basis, **changed)


async def drive(model: Model, start: Rollout | None = None) -> Rollout:
    """From the record, if there is one, as the next `imctl` would."""
    begun = from_json(model.record) if model.record else start or rollout()
    return await Driver(model, begun, lambda unit, sentence: None).run()


def settled(model: Model) -> list[tuple[str, str, object, int, int]]:
    return [(n, u.region, u.state, u.ramp, u.sessions) for n, u in model.units.items()]


async def test_one_idc_after_the_other_emptied_restarted_given_back() -> None:
    model = Model()
    done = await drive(model)
    assert (done.state, done.why, model.own) == (State.DONE, "", NEW)
    turns = [[f"drain {i}", f"restart {i}", f"failback {i}"] for i in ("sin", "fra", "iad")]
    assert model.log == [*turns[0], *turns[1], *turns[2], "restart witness"]
    assert from_json(model.record) == done
    assert next(row.sentence for row in done.rows if row.unit == "sin") == "its turn; active"


async def test_a_change_that_takes_nothing_only_becomes_the_deployments_file() -> None:
    model = Model()
    done = await drive(model, rollout(order=()))
    assert (done.state, model.log, model.own) == (State.DONE, [], NEW)


async def test_killed_anywhere_and_run_again_it_ends_the_same() -> None:
    whole = Model()
    await drive(whole)
    assert whole.points > 60
    for at in range(1, whole.points + 1):
        model = Model(kill_at=at)
        with pytest.raises(Killed):
            await drive(model)
        model.kill_at = -1
        done = await drive(model)
        assert done.state is State.DONE, (at, done.why)
        assert (settled(model), model.own) == (settled(whole), NEW), at
        assert all(unit.starts <= 2 for unit in model.units.values()), at


async def test_killed_twice_with_time_between_it_ends_the_same() -> None:
    """The others have declared the IDC failed meanwhile, and given it up."""
    whole = Model()
    await drive(whole)
    for at, again, pause_s in product(range(1, 40), range(1, 20, 2), (0, 10)):
        model = Model(kill_at=at)
        for kill_at in (at, again):
            model.kill_at, model.points = kill_at, 0
            with pytest.raises(Killed):
                await drive(model)
            for _ in range(pause_s):
                model._tick(1.0)
        model.kill_at = -1
        done = await drive(model)
        assert done.state is State.DONE, (at, again, done.why)
        assert (settled(model), model.own) == (settled(whole), NEW), (at, again)


@pytest.mark.parametrize("state", [S.DRAINED, S.RECOVERING, S.RETIRED, S.CORDONED])
async def test_an_idc_is_left_as_it_was_found(state: IdcState) -> None:
    model = Model()
    model.units["fra"].state = state
    model.units["fra"].sessions = 0
    done = await drive(model, rollout(order=("fra",)))
    assert done.state is State.DONE
    assert (model.units["fra"].state, model.units["fra"].region) == (state, NEW)
    assert ("drain fra" in model.log) == (state is S.CORDONED)


async def test_an_idc_that_does_not_answer_blocks_nobody_and_is_caught_up_later() -> None:
    model = Model()
    model.units["fra"] = Unit(state=S.FAILED, runs=False, sessions=0, answers=False)
    done = await drive(model)
    assert done.state is State.EXCEPTIONS
    assert done.why.startswith("fra does not run")
    assert (model.units["fra"].region, model.units["iad"].region, model.own) == (OLD, NEW, NEW)

    model.units["fra"].runs = model.units["fra"].answers = True
    model.units["fra"].state = S.RECOVERING
    model.record = ""
    later = await drive(model, rollout(id="deploy-3", order=("fra",)))
    assert (later.state, model.units["fra"].region) == (State.DONE, NEW)


async def test_one_answer_that_is_late_is_no_silence() -> None:
    model = Model()
    model.units["sin"].answers = False
    driver = Driver(model, rollout(), lambda unit, sentence: None)
    await driver._note_the_start()
    while model.clock < SILENT_S - 1:
        await driver._once()
    model.units["sin"].answers = True
    assert (await driver.run()).state is State.DONE


async def test_a_new_file_with_which_the_canary_does_not_serve_stops_there() -> None:
    model = Model(bad={"sin"})
    paused = await drive(model)
    assert (paused.state, paused.gate) == (State.PAUSED, False)
    assert paused.why.startswith("sin: after") and paused.why.endswith("it serves")
    assert {unit.region for name, unit in model.units.items() if name != "sin"} == {OLD}
    assert model.own == OLD

    model.bad.clear()  # mended; an operator resumes
    model.write(replace(paused, state=State.RUNNING, why=""))
    assert (await drive(model)).state is State.DONE


async def test_a_guard_that_goes_on_saying_no_pauses_the_rollout() -> None:
    model = Model(refusing=lambda kind, idc: "headroom: too few" if idc == "fra" else "")
    paused = await drive(model)
    assert (paused.state, paused.gate, paused.why) == (State.PAUSED, True, "fra: headroom: too few")
    assert (paused.done, model.units["fra"].region) == (("sin",), OLD)


async def test_a_drain_that_somebody_takes_back_is_not_asked_for_for_ever() -> None:
    class Undrained(Model):
        async def sleep(self, seconds: float) -> None:
            if self.units["sin"].state is S.DRAINING:
                self.units["sin"].state, self.operation = S.ACTIVE, None
            await super().sleep(seconds)

    model = Undrained()
    paused = await drive(model)
    assert (paused.state, paused.gate) == (State.PAUSED, True)
    assert paused.why == "sin: its drain does not last; who takes it back?"
    assert model.units["sin"].region == OLD


async def test_a_guard_that_says_no_for_a_while_is_waited_for() -> None:
    model = Model()
    model.refusing = lambda kind, idc: "replication-lag" if model.clock < 20 else ""
    assert (await drive(model)).state is State.DONE


async def test_a_gate_that_fails_in_the_soak_pauses_the_rollout() -> None:
    model = Model()

    class Alarming(Model):
        async def failback(self, idc: str) -> str:
            self.units[idc].alarms = ("partition 3 takes no writes",)
            return await super().failback(idc)

    model = Alarming()
    paused = await drive(model)
    assert (paused.state, paused.gate) == (State.PAUSED, True)
    assert paused.why == "sin: alarm: sin: partition 3 takes no writes"
    assert paused.done == ()


async def test_a_soak_that_is_broken_begins_again() -> None:
    class Stumbling(Model):
        async def look(self, rollout: Rollout) -> dict[str, Seen]:
            back = self.units["sin"].region == NEW and self.units["sin"].ramp == 100
            self.soaking_since = self.clock if not back else self.soaking_since
            soaked_s = self.clock - self.soaking_since
            self.units["sin"].lag_ms = 9_000 if back and 1.0 < soaked_s < 1.8 else 20
            return await super().look(rollout)

        soaking_since = 0.0

    model = Stumbling()
    done = await drive(model, rollout(order=("sin",)))
    assert done.state is State.DONE
    assert model.clock - model.soaking_since >= 1.5 + 2.0, "the two seconds before it do not count"


async def test_the_operator_pauses_between_two_steps() -> None:
    model = Model(pausing=True)
    stopped = await drive(model)
    assert (stopped.state, model.log) == (State.STOPPED, [])


class Answering(Model):
    """Who is asked how the units are says this in place of it, once iad's turn has begun."""

    says: ImError | None = None

    async def look(self, rollout: Rollout) -> dict[str, Seen]:
        if self.says is not None and rollout.current == "iad":
            raise self.says
        return await super().look(rollout)


async def test_a_look_that_is_refused_pauses_at_once() -> None:
    model = Answering()
    model.says = Denied("sites.iad.spec: 100Gi is refused")
    told: list[tuple[str, str]] = []
    driver = Driver(model, rollout(), lambda unit, sentence: told.append((unit, sentence)))
    paused = await driver.run()
    assert (paused.state, paused.gate) == (State.PAUSED, False)
    assert paused.why == "iad: sites.iad.spec: 100Gi is refused"
    assert told[-1] == ("iad", "paused: sites.iad.spec: 100Gi is refused")
    assert not [sentence for unit, sentence in told if unit == "iad" and "waits" in sentence]
    model.says = None  # allowed since; an operator resumes
    model.write(replace(paused, state=State.RUNNING, why=""))
    assert (await drive(model)).state is State.DONE


async def test_a_look_without_an_answer_is_waited_for() -> None:
    model = Answering()
    model.says = Failed("the API server does not answer")
    paused = await drive(model)
    assert paused.state is State.PAUSED
    assert "s not yet: there is an answer (the API server does not answer)" in paused.why


async def test_a_restart_that_fails_is_an_error_and_can_be_tried_again() -> None:
    class Broken(Model):
        broken = True

        async def restart(self, name: str, wanted: str) -> None:
            if self.broken:
                self.units[name].runs, self.units[name].region = False, wanted
                raise Failed("cannot listen")
            await super().restart(name, wanted)

    model = Broken()
    paused = await drive(model)
    assert (paused.state, paused.gate) == (State.PAUSED, False)
    assert paused.why == "sin: restart: cannot listen"
    model.broken = False
    model.write(replace(paused, state=State.RUNNING))
    assert (await drive(model)).state is State.DONE


async def test_a_request_without_an_answer_is_looked_after_and_made_again() -> None:
    class Lossy(Model):
        async def drain(self, idc: str, rollout: Rollout) -> str:
            if self.clock < 5:
                raise OutcomeUnknown("no answer")
            return await super().drain(idc, rollout)

    model = Lossy()
    assert (await drive(model)).state is State.DONE
    assert model.log.count("drain sin") == 1


STATUS = {
    "policy": {
        "epoch": 7,
        "operation": "failback-a-b-7",
        "idcs": {"a-b": {"state": "recovering", "ramp": 100}},
    }
}


def test_without_a_majority_the_newest_policy_that_an_idc_tells_counts() -> None:
    """Two of three are down, one of them with a file that it does not start with: it is to be
    taken back."""
    older = {"policy": {"epoch": 6, "operation": "", "idcs": {}}}
    found = told(Unavailable("no majority"), {"x": older, "y": STATUS})
    assert found.idcs == {"a-b": (S.RECOVERING, 100)}
    assert found.moving == "a-b"
    rows = {"a-b": {"state": "drained", "ramp": 100}}
    witness = {"policy": {"epoch": 7, "idcs": rows}}  # it says nothing of operations
    both = told(Unavailable("no majority"), {"w": witness, "y": STATUS})
    assert both.moving == "a-b", "of one epoch, who says more"
    newer = {"policy": {"epoch": 8, "idcs": rows}}
    alone = told(Unavailable("no majority"), {"w": newer, "y": STATUS})
    assert (alone.idcs, alone.moving) == ({"a-b": (S.DRAINED, 100)}, "")
    with pytest.raises(Unavailable):
        told(Unavailable("no majority"), {})
    committed = Policy(9, {"x": IdcPolicy(S.DRAINED)})
    assert told(committed, {"y": STATUS}).idcs == {"x": (S.DRAINED, 100)}


async def test_one_that_ends_again_and_again_is_not_started_for_ever() -> None:
    class Ending(Model):
        async def restart(self, name: str, wanted: str) -> None:
            await super().restart(name, wanted)
            self.units[name].runs = False

    model = Ending()
    paused = await drive(model)
    assert (paused.state, model.units["sin"].starts) == (State.PAUSED, 2)
    assert paused.why == "sin: it ends by itself again and again: error: no such file"


async def test_no_majority_for_a_while_is_waited_for() -> None:
    class Deaf(Model):
        async def look(self, rollout: Rollout) -> dict[str, Seen]:
            if 3 < self.clock < 9:
                raise Unavailable("no majority")
            return await super().look(rollout)

    assert (await drive(Deaf())).state is State.DONE


def apart(wanted_already: bool = True) -> Model:
    """With gateways of their own in fra and iad."""
    model = Model()
    for name in ("fra", "iad"):
        model.units[name].gateways = OLD
    for unit in model.units.values():
        unit.region = NEW if wanted_already else OLD
    return model


async def test_gateways_get_what_is_wanted_while_their_idc_keeps_its_clients() -> None:
    model = apart()
    done = await drive(model, rollout(order=("fra", "iad")))
    assert (done.state, model.log) == (State.DONE, ["apply fra", "apply iad"])
    assert {unit.sessions for unit in model.units.values() if unit.state} == {40}


async def test_gateways_follow_the_pod_of_their_idc_before_it_has_its_clients_back() -> None:
    model = apart(wanted_already=False)
    await drive(model, rollout(order=("fra", "sin")))
    turn = [line for line in model.log if line.endswith("fra")]
    assert turn == ["drain fra", "restart fra", "apply fra", "failback fra"]


async def test_killed_anywhere_gateways_end_the_same() -> None:
    clean = apart(wanted_already=False)
    await drive(clean)
    for kill_at in range(1, clean.points + 1):
        model = apart(wanted_already=False)
        model.kill_at = kill_at
        with pytest.raises(Killed):
            await drive(model)
        done = await drive(model)
        assert (done.state, settled(model)) == (State.DONE, settled(clean)), kill_at
        assert {unit.gateways for unit in model.units.values()} == {"", NEW}
        assert all(unit.rolled >= model.gateways for unit in model.units.values())


async def test_gateways_that_come_no_further_pause_the_rollout_and_slow_ones_do_not() -> None:
    slow = apart()
    slow.gateway_s = 100.0
    assert (await drive(slow, rollout(order=("fra",)))).state is State.DONE
    stuck = apart()
    stuck.stuck_at = 1
    paused = await drive(stuck, rollout(order=("fra", "iad")))
    assert (paused.state, paused.gate) == (State.PAUSED, False)
    assert paused.why.endswith("all its gateways are as wanted: 2 are left")
    assert stuck.units["iad"].gateways == OLD


async def test_what_is_applied_and_taken_back_again_and_again_pauses_the_rollout() -> None:
    model = apart()
    model.taken_back = True
    paused = await drive(model, rollout(order=("fra",)))
    assert paused.state is State.PAUSED and "who takes it back?" in paused.why


def seen(**changed: Any) -> Seen:
    return replace(Seen(runs=True, current=False, state=S.ACTIVE), **changed)


@pytest.mark.parametrize(
    ("unit", "found", "do"),
    [
        (seen(), "", Do.BEGIN),
        (seen(), "active", Do.DRAIN),
        (seen(state=S.DRAINING, moving=True), "active", Do.WAIT),
        (seen(state=S.DRAINING), "active", Do.DRAIN),
        (seen(state=S.DRAINED), "active", Do.RESTART),
        (seen(state=S.FAILED), "active", Do.RESTART),
        (seen(current=True, state=S.DRAINED, serving=False), "active", Do.WAIT),
        (seen(current=True, state=S.DRAINED, lag_ms=9_000), "active", Do.WAIT),
        (seen(current=True, state=S.DRAINED), "active", Do.FAILBACK),
        (seen(current=True, state=S.FAILED), "active", Do.WAIT),
        (seen(current=True, state=S.RECOVERING, moving=True), "active", Do.WAIT),
        (seen(current=True, ramp=50), "active", Do.FAILBACK),
        (seen(current=True), "active", Do.SOAK),
        (seen(current=True), "cordoned", Do.CORDON),
        (seen(current=True, state=S.DRAINED), "drained", Do.SOAK),
        (seen(current=True, lacks=True), "active", Do.APPLY),
        (seen(current=True, lacks=True, serving=False), "active", Do.WAIT),
        (seen(lacks=True), "active", Do.DRAIN),
        (seen(current=True, rolling=Rolling("one is left")), "active", Do.WAIT),
        (seen(answers=False), "active", Do.SKIP),
    ],
)
def test_the_next_step(unit: Seen, found: str, do: Do) -> None:
    begun = rollout(order=("fra",), found={"fra": found} if found else {})
    assert next_step(begun, World({"fra": unit})).do is do


def test_what_somebody_else_knows_of_one_that_does_not_serve_is_said() -> None:
    begun = rollout(order=("fra",), found={"fra": "active"}, restarting="fra")
    unit = seen(current=True, serving=False, state=S.DRAINED, trouble="idc: ImagePullBackOff")
    assert next_step(begun, World({"fra": unit})).sentence == "it serves: idc: ImagePullBackOff"


def test_who_was_taken_down_by_the_rollout_is_not_left_out() -> None:
    begun = rollout(order=("fra",), found={"fra": "active"}, restarting="fra")
    down = seen(runs=False, answers=False, serving=False, state=S.DRAINED, current=True)
    assert next_step(begun, World({"fra": down})).do is Do.RESTART


def gates(begun: Rollout, **units: Seen) -> tuple[str, ...]:
    return failing(begun, World(units), "fra")


def test_gates_compare_with_the_beginning() -> None:
    begun = rollout(
        alarms=(kind_of("iad", "the clock is 12 ms off"),),
        sessions={"fra": 60, "iad": 30, "sin": 30},
        done=("sin",),
    )
    good = {name: seen(sessions=count) for name, count in begun.sessions.items()}
    assert gates(begun, **good) == ()
    assert gates(begun, **good | {"iad": seen(alarms=("the clock is 99 ms off",))}) == ()
    assert gates(begun, **good | {"iad": seen(alarms=("disk full",))}) == ("alarm: iad: disk full",)
    assert gates(begun, **good | {"iad": seen(answers=False)}) == ()
    assert gates(begun, **good | {"sin": seen(answers=False)}) == ("serving: sin does not serve",)
    slow = gates(begun, **good | {"sin": seen(lag_ms=6_000)})
    assert slow == ("lag: sin 6000 ms, 5000 allowed",)
    late = seen(acks=20, ack_p99_ms=1_200.4)
    assert gates(begun, **good | {"iad": late}) == ("acks: iad 1200 ms, 1000 allowed",)
    assert gates(begun, **good | {"iad": replace(late, acks=19)}) == ()
    assert gates(replace(begun, ack_ms_max=1_300), **good | {"iad": late}) == ()
    assert gates(begun, **good | {"fra": seen(sessions=10)}) == (
        "clients: fra has 10 sessions, 18 expected",
    )
    half = {name: seen(sessions=count // 2) for name, count in begun.sessions.items()}
    assert gates(begun, **half) == (), "the whole region has fewer"


def test_a_record_of_something_else_is_refused() -> None:
    for text in ("", "{}", '{"id": 3}', "[]"):
        with pytest.raises(ValueError):
            from_json(text)
    assert issubclass(Failed, ImError)
