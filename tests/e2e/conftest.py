"""Fixtures of the tests that start whole deployments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from imctl.target.local import Local
from imctl.testing.cast import Actor, Cast, Couple
from imctl.testing.cli import imctl
from imctl.testing.lab import Edit, Lab
from tests.e2e.drilling import deployed

USERS_MAX = 100  # of one test in each IDC

Stage = Callable[..., AbstractAsyncContextManager[tuple[Lab, Cast]]]
Visit = Callable[[], AbstractAsyncContextManager[tuple[Lab, Cast]]]
Chat = Callable[[Sequence[Couple], float], AbstractAsyncContextManager[None]]


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """The folder of a deployment that the test starts by command; it is stopped in the end."""
    folder = tmp_path / "deployment"
    yield folder
    if (folder / "run.json").exists():
        imctl(folder, "down")


@pytest.fixture
def stage(tmp_path: Path, request: pytest.FixtureRequest) -> Stage:
    """``async with stage(edit=...) as (lab, cast)``: three IDCs that serve, and recorded clients.
    When the test fails, the logs' last lines are printed."""

    @asynccontextmanager
    async def staged(
        edit: Edit | None = None,
        before_start: Callable[[Local], Any] = lambda target: None,
        split: bool = False,
        standby: bool = False,
        routes: int = 0,
    ) -> AsyncIterator[tuple[Lab, Cast]]:
        async with Lab.up(tmp_path, edit, before_start, (), split, standby, routes) as lab:
            with logs_of_a_failure(lab):
                async with Cast(lab, tmp_path) as cast:
                    yield lab, cast

    return staged


@contextmanager
def logs_of_a_failure(lab: Lab) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for idc in lab.idcs:
            print(f"--- {idc}: {lab.target.log_file(idc)}")
            print("\n".join(lab.log(idc).splitlines()[-25:]))
        raise


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Iterator[int]]]:
    """Three IDCs for those tests of a module that leave them as they were: the deployment's folder,
    and numbers of users that nobody was."""
    with deployed(tmp_path_factory.mktemp("shared")) as data:
        yield data, count(1, USERS_MAX)


@pytest.fixture
def visit(shared: tuple[Path, Iterator[int]], tmp_path: Path) -> Visit:
    """``async with visit() as (lab, cast)``: as ``stage``, on the deployment of the module."""

    @asynccontextmanager
    async def visiting() -> AsyncIterator[tuple[Lab, Cast]]:
        data, numbers = shared
        lab = Lab(Local.open(data))
        try:
            with logs_of_a_failure(lab):
                async with Cast(lab, tmp_path, first=next(numbers)) as cast:
                    yield lab, cast
        finally:
            await lab.close()

    return visiting


@pytest.fixture
def chat() -> Chat:
    """``async with chat(couples, 100)``: so many messages a second, of everybody in turn. The loop
    is open: nobody waits for an ack before the next message, so a device that is back shows it at
    once. At the end no more are sent, and all that were are answered."""

    @asynccontextmanager
    async def chatting(couples: Sequence[Couple], rate: float) -> AsyncIterator[None]:
        speakers: list[tuple[Actor, str]] = []
        for couple in couples:
            speakers += [(couple.here, couple.conversation), (couple.there, couple.conversation)]
        sends: list[asyncio.Task[str | None]] = []

        async def talk() -> None:
            loop = asyncio.get_running_loop()
            due = loop.time()
            while True:
                for actor, conversation in speakers:
                    sends.append(asyncio.ensure_future(actor.send(conversation)))
                    due += 1 / rate
                    await asyncio.sleep(due - loop.time())

        talking = asyncio.ensure_future(talk())
        try:
            yield
        finally:
            talking.cancel()
            await asyncio.gather(talking, return_exceptions=True)
            await asyncio.gather(*sends)

    return chatting
