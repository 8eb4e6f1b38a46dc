"""A real Kafka for tests: killed, paused, wiped and asked for raw things as they like."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from imctl.engines.binaries import Program
from imctl.engines.kafka import Listener, Server
from imctl.target.places import free_ports
from imctl.testing.child import Child, started
from services.engines.kafka.settings import KafkaSettings

START_S = 60.0
USER, PASSWORD = "im", "s3cret"  # whom a cluster of three lets in by SCRAM-SHA-512


class KafkaProcess(Child):
    """TLS on, as the broker ``iad`` of a pki folder that serves the IDC ``fra``."""

    def __init__(
        self,
        program: Program,
        folder: Path,
        pki: Path,
        flush: bool = False,
        host: str = "127.0.0.1",
    ) -> None:
        """``host``: an address of this machine at which it is reached."""
        self._lib = program.path
        super().__init__("kafka", folder / "kafka.log")
        address, controller, remote, nowhere = (f"{host}:{port}" for port in free_ports(4))
        # Nothing listens where it sends sin's clients: a test may.
        self.for_sin = Listener(remote, nowhere)
        self.server = Server(
            folder / "kafka",
            address,
            controller,
            pki,
            "iad",
            "fra",
            {"sin": self.for_sin},
            flush=flush,
        )

    def settings(
        self,
        prefix: str,
        name: str = "fra",
        deadline_s: float = 5.0,
        durability: str = "replicated",
    ) -> KafkaSettings:
        pki = self.server.pki
        return KafkaSettings(
            brokers=(self.server.address,),
            prefix=prefix,
            ca_file=pki / "ca.pem",
            cert_file=pki / f"{name}.pem",
            key_file=pki / f"{name}.key",
            replication_factor=1,
            min_insync_replicas=1,
            deadline_s=deadline_s,
            durability=durability,
        )

    # -------------------------------------------------------------------------- processes

    def launch(self) -> None:
        self.server.prepare(self._lib)
        self.spawn(self.server.command(self._lib))

    def start(self) -> None:
        """Until it serves."""
        self.launch()
        self.wait()

    def wait(self) -> None:
        """Until it serves."""
        self.until_ready(self.server.healthy, START_S)

    def wipe(self) -> None:
        shutil.rmtree(self.server.data)


@contextlib.contextmanager
def running(
    program: Program,
    folder: Path,
    pki: Path,
    data: Path | None = None,
    flush: bool = False,
    host: str = "127.0.0.1",
) -> Iterator[KafkaProcess]:
    """``data``: where its storage lies, when not in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    kafka = KafkaProcess(program, folder, pki, flush, host)
    if data is not None:
        kafka.server = replace(kafka.server, data=data)
    with started(kafka):
        yield kafka


class Members:
    """One cluster of three brokers, each of which votes for the controller too. Topics have three
    replicas, and two must be in sync."""

    def __init__(self, program: Program, folder: Path, pki: Path) -> None:
        ids = range(1, 4)
        self.each: list[KafkaProcess] = []
        for number in ids:
            (folder / str(number)).mkdir(parents=True)
            self.each.append(KafkaProcess(program, folder / str(number), pki))
        self._sasl = [f"127.0.0.1:{port}" for port in free_ports(len(ids))]
        voters = ",".join(f"{n}@{self[n].server.controller}" for n in ids)
        for number in ids:
            self._join(number, voters)

    def __getitem__(self, number: int) -> KafkaProcess:
        """By broker id, from 1 on."""
        return self.each[number - 1]

    def _join(self, number: int, voters: str) -> None:
        ports = iter(free_ports(4))
        alone = self[number].server
        # Whoever asks at the listener for lost-N is told that broker N is where nobody listens.
        remote = {}
        for lost in range(1, len(self.each) + 1):
            here = f"127.0.0.1:{next(ports)}"
            nowhere = f"127.0.0.1:{next(ports)}" if lost == number else here
            remote[f"lost-{lost}"] = Listener(here, nowhere)
        server = replace(alone, remote=remote, cluster_id=self[1].server.cluster_id)
        own, sasl = server.properties(), f",SASL://{self._sasl[number - 1]}"
        three = {
            "node.id": str(number),
            "controller.quorum.voters": voters,
            "offsets.topic.replication.factor": "3",
            "transaction.state.log.replication.factor": "3",
            "transaction.state.log.min.isr": "2",
            "default.replication.factor": "3",
            "min.insync.replicas": "2",
        }
        scram = {
            "listeners": own["listeners"] + sasl,
            "advertised.listeners": own["advertised.listeners"] + sasl,
            "listener.security.protocol.map": own["listener.security.protocol.map"]
            + ",SASL:SASL_SSL",
            "super.users": f"{own['super.users']};User:{USER}",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.sasl.ssl.client.auth": "none",
            "listener.name.sasl.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
        }
        self[number].server = replace(
            server,
            over=three | scram,
            format=("--add-scram", f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"),
        )

    def settings(self, prefix: str, deadline_s: float) -> KafkaSettings:
        """As the IDC ``fra``, by its certificate."""
        brokers = tuple(one.server.address for one in self.each)
        return replace(
            self[1].settings(prefix, deadline_s=deadline_s),
            brokers=brokers,
            replication_factor=3,
            min_insync_replicas=2,
        )

    def without(self, number: int, settings: KafkaSettings) -> KafkaSettings:
        """The same for one whom broker ``number`` cannot be reached from."""
        there = [one.server.remote[f"lost-{number}"] for one in self.each]
        reached = tuple(at.address for at in there if at.address == at.advertised)
        return replace(settings, brokers=reached)

    def by_password(self, settings: KafkaSettings, username: str, password: str) -> KafkaSettings:
        """The same as a user, without a certificate."""
        return replace(
            settings,
            brokers=tuple(self._sasl),
            cert_file=None,
            key_file=None,
            username=username,
            password=password,
        )

    def start(self) -> None:
        """Until they serve."""
        for one in self.each:
            one.launch()
        for one in self.each:
            one.wait()

    def kill(self) -> None:
        for one in self.each:
            one.kill()


@contextlib.contextmanager
def running_members(program: Program, folder: Path, pki: Path) -> Iterator[Members]:
    with started(Members(program, folder, pki)) as members:
        yield members
