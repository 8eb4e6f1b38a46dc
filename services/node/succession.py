"""The hot restart of a front: it becomes its own successor, on new code, by an ``exec``.

Its listener goes on listening throughout; who connects meanwhile waits in the kernel's queue.
Connections without TLS (a proxy beside the gateway ends TLS for them) stand, and their clients
notice a pause. Those over TLS cannot be handed on: with other gateways in the IDC their clients are
told to move there first, at a rate that those admit, otherwise they are told to come again, and
their sessions are resumed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

from imcore.errors import ImError
from imcore.listener import Listener
from imcore.proto import front_pb2 as front
from imcore.words import parse_origin
from services.gateway.handover import Handover, Standing
from services.gateway.server import Gateway
from services.ipconf.directory import PREFIX
from services.ports import Registry
from services.split.core import CoreLink
from services.state.server import StateServer

log = logging.getLogger("im.front")

CHECK_S = 30.0
ANSWER_S = 2.0  # for requests under way to be answered
WRITE_S = 1.0  # and for answers to be taken
LEAVE_S = 10.0  # for a client that was told to move, beyond its time
OTHERS_S = 5.0  # for another gateway to be there
LOOK_S = 0.02
AGAIN_S = 0.5  # between looks for clients that came while others went


async def startable() -> str:
    """What keeps this process from being started again as it was, by the code that is installed
    now; "": nothing."""
    return await asyncio.to_thread(_checked)


def _checked() -> str:
    """By `subprocess`, which uses vfork: the loop's own way forks, and gRPC's handlers of a fork
    can hang the child, and with it the loop that waits for its exec."""
    command = [*_command(), "--check"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_S, check=False)
    except subprocess.TimeoutExpired:
        return f"the check did not end within {CHECK_S:.0f} s"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"the check ended with status {done.returncode}"


async def others(registry: Registry, own: str) -> int:
    """How many other gateways of the IDC clients are sent to. A neighbour may have restarted just
    now, so one is waited for a little."""
    deadline = asyncio.get_running_loop().time() + OTHERS_S
    while True:
        with contextlib.suppress(ImError):
            names = [row.key.removeprefix(PREFIX) for row in await registry.range(PREFIX)]
            if found := sum(name != own.encode() for name in names):
                return found
        if asyncio.get_running_loop().time() >= deadline:
            return 0
        await asyncio.sleep(LOOK_S * 10)


async def leave(state: StateServer, admitted_per_s: float, policy_epoch: int) -> None:
    """Every client is sent to another gateway, so many a second; ends when they are gone, or have
    had their time."""
    within_s = state.connected_count() / admitted_per_s
    log.info("%d clients are told to move within %.1f s", state.connected_count(), within_s)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s + LEAVE_S
    told: set[tuple[str, int]] = set()
    while state.connected_count() and (left_s := deadline - loop.time()) > 0:
        here = {(one.session, one.connection) for one in state.sessions() if one.connected}
        spread_ms = round(max(0.0, left_s - LEAVE_S) * 1000)
        for session, _ in here - told:  # some were on their way here, or have come back
            state.move(session, spread_ms, policy_epoch)
        told |= here
        await within(AGAIN_S, lambda: not state.connected_count())


async def hand_over(
    gateway: Gateway, listener: Listener, state: StateServer, link: CoreLink, restarts: int
) -> Handover:
    """Stops the gateway but for its sockets, and writes the sessions down. What is pushed from here
    on reaches nobody; the successor catches up on it from ``since``."""
    listening = await listener.release()
    gateway.freeze()
    since = link.since
    await within(ANSWER_S, lambda: not state.queued()["requests"])
    await within(WRITE_S, gateway.settled)

    def session_of(number: int) -> str | None:
        return state.settled_session(gateway.name, number)

    staying = {number for number in gateway.numbers() if session_of(number) is not None}
    await gateway.stop_others(staying)
    # What huge groups were told before ``since`` is owed only once its turn has come.
    await within(ANSWER_S, lambda: not state.waiting())
    with contextlib.suppress(TimeoutError):  # of a disk that hangs: all clients wait
        async with asyncio.timeout(ANSWER_S):
            await state.write_checkpoint()
    listeners = [os.dup(each.fileno()) for each in listening]
    standing = gateway.hand_on(session_of)
    ended = [one.SerializeToString() for one in link.ended()]
    return Handover(gateway.name, str(link.origin), since, restarts, listeners, standing, ended)


async def within(seconds: float, done: Callable[[], bool]) -> None:
    """Ends when it is done, or after that time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not done() and loop.time() < deadline:  # noqa: ASYNC110 - nothing to wait on
        await asyncio.sleep(LOOK_S)


def become(handover: Handover) -> None:
    """This process goes on as its successor. A second signal must not end it before that hears."""
    handover.keep()
    replace()


def replace() -> NoReturn:
    """This process begins anew, by the code that is installed now."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    command = _command()
    os.execv(command[0], command)  # noqa: S606


def _command() -> list[str]:
    return [sys.executable, *sys.orig_argv[1:]]


async def go_on(handover: Handover, gateway: Gateway, state: StateServer, link: CoreLink) -> None:
    """Takes up what the predecessor left. Positions that sessions hold are of one incarnation of
    the IDC; where that is over meanwhile, clients have to begin anew as well."""
    valid = link.origin is not None and link.origin == parse_origin(handover.origin)

    def joined(standing: Standing) -> bool:
        return valid and state.joined(gateway.name, standing.number, standing.session)

    # First of all: who comes while they are taken up must not get the number of one of them.
    gateway.number_above(max((each.number for each in handover.standing), default=0))
    stood = 0
    for standing in handover.standing:
        if await gateway.adopt(standing, joined):
            stood += 1
            state.overflowed(gateway.name, standing.number)  # `replicated` may have come meanwhile
    link.ended_before([front.Caller.FromString(one) for one in handover.ended])
    link.catch_up_from(handover.since)
    log.info("%d of %d connections stand after a restart", stood, len(handover.standing))
