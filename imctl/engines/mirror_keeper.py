"""``python -m imctl.engines.mirror_keeper OPTIONS -- COMMAND``: runs an IDC's MirrorMaker 2, and
starts it again when it ends, gives a task up, or gives no sign of life (mirror_watch.py)."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from imcore.errors import ImError
from imctl.engines.mirror_watch import GIVEN_UP, Watch
from services.engines.kafka.cluster import Cluster
from services.engines.kafka.heartbeats import Heartbeats
from services.engines.kafka.settings import KafkaSettings

log = logging.getLogger("mirror-keeper")

LOOK_S = 2.0
DEADLINE_S = 5.0  # of a look
WRONG_S = 10.0  # one that ends so soon after the very first start has wrong settings
END_S = 15.0  # between being asked to end and being killed
_LINE_BYTES = 1 << 20


class Keeper:
    def __init__(self, command: Sequence[str], flows: Sequence[str], beats: Heartbeats) -> None:
        self._command = command
        self._watch = Watch(flows)
        self._beats = beats
        self._stop = asyncio.Event()

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> int:
        """Until stopped; returns the exit status."""
        first = time.monotonic()
        while True:
            child = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                limit=_LINE_BYTES,
            )
            try:
                why = await self._until_it_fails(child)
            finally:  # it never outlives its keeper
                status = await _end(child)
            if self._stop.is_set():
                return 0
            if status and time.monotonic() - first < WRONG_S and why == "it has ended":
                return status
            wait_s = self._watch.restart()
            log.warning("MirrorMaker is started again in %g s: %s", wait_s, why)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), wait_s)
                return 0

    async def _until_it_fails(self, child: asyncio.subprocess.Process) -> str:
        """Why."""
        watching = [
            asyncio.ensure_future(it) for it in (self._said(child), self._silent(), self._stopped())
        ]
        try:
            done, _ = await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result()
        finally:
            for one in watching:
                one.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    async def _said(self, child: asyncio.subprocess.Process) -> str:
        """Passes on what it says, until it ends or gives a task up."""
        assert child.stdout is not None
        while line := await child.stdout.readline():
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            if GIVEN_UP.encode() in line:
                return "it has given a task up"
        await child.wait()  # or it would be told to end on its way out, and its status be lost
        return "it has ended"

    async def _silent(self) -> str:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                async with asyncio.timeout(DEADLINE_S):
                    await self._beats.look()
            except (ImError, LookupError, TimeoutError):
                self._watch.unanswered()
                continue
            if silent := self._watch.looked(self._beats.last_ms, LOOK_S):
                return f"it gives no sign of life of its flow from {' and '.join(silent)}"

    async def _stopped(self) -> str:
        await self._stop.wait()
        return "it is to end"


async def _end(child: asyncio.subprocess.Process) -> int:
    """Asked first, then killed. What it says meanwhile is passed on."""
    assert child.stdout is not None
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        async with asyncio.timeout(END_S):
            sys.stdout.buffer.write(await child.stdout.read())
            sys.stdout.buffer.flush()
            return await child.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        return await child.wait()


async def _keep(options: argparse.Namespace) -> int:
    settings = KafkaSettings(
        brokers=tuple(options.brokers.split(",")),
        prefix="",
        ca_file=options.ca,
        cert_file=options.cert,
        key_file=options.key,
        deadline_s=DEADLINE_S,
    )
    cluster = Cluster(settings, options.idc)
    keeper = Keeper(options.command, options.sources.split(","), Heartbeats(cluster, options.idc))
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, keeper.stop)
    try:
        return await keeper.run()
    finally:
        await cluster.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="imctl.engines.mirror_keeper", description=__doc__)
    parser.add_argument("--idc", required=True, help="whose MirrorMaker it is")
    parser.add_argument("--sources", required=True, help="the IDCs that it copies, comma-separated")
    parser.add_argument("--brokers", required=True, help="of the IDC's Kafka, comma-separated")
    parser.add_argument("--ca", type=Path, help="PEM file; without: no TLS")
    parser.add_argument("--cert", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("command", nargs="+")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.exit(asyncio.run(_keep(parser.parse_args())))


if __name__ == "__main__":
    main()
