"""MirrorMaker 2 of one IDC as a process on this machine: its files and its command line.

It has no port of its own. Whether it copies is seen in the IDC's Kafka, where its heartbeats
arrive (``services.engines.kafka.mirror_lag``).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from imcore import pki
from imctl.engines import jvm, mm2_config, properties
from imctl.engines.mm2_config import USUAL, Credentials, Flows, Pace
from imctl.errors import Failed

HEAP_MB = 192
FOLDER = Path("/etc/imctl/mm2")  # of its files, where none is asked for
MAIN = "org.apache.kafka.connect.mirror.MirrorMaker"
_LOGGING = """\
appenders={appenders}
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{{ISO8601}} %p %c{{1}}: %m%n
{file}rootLogger.level=WARN
rootLogger.appenderRefs={appenders}
rootLogger.appenderRef.console.ref=console
logger.mirror.name=org.apache.kafka.connect.mirror
logger.mirror.level=INFO
logger.refresh.name=org.apache.kafka.connect.mirror.Scheduler
logger.refresh.level=WARN
"""
_LOG_FILE = """\
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName={path}
appender.file.filePattern={path}.%i
appender.file.append=false
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d{{ISO8601}} %p %c{{1}}: %m%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size=16MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=1
rootLogger.appenderRef.file.ref=file
"""


@dataclass(frozen=True, slots=True)
class MirrorMaker:
    """``folder``: of its files; it keeps nothing there between two starts, all that it must
    remember lies in the target's Kafka. ``password_file``: with ``credentials.username``."""

    folder: Path
    flows: Flows
    credentials: Credentials
    password_file: Path | None = None
    pace: Pace = USUAL

    @property
    def settings_file(self) -> Path:
        return self.folder / "mm2.properties"

    @property
    def secrets_file(self) -> Path:
        return secrets_file(self.folder)

    def prepare(self) -> None:
        """Writes its files, which only their owner can read. Raises Failed, BadInput."""
        found = mm2_config.settings(self.flows, self.credentials, self.pace)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            pki.write_private(self.settings_file, properties.text(found).encode())
            pki.write_private(self._logging_file, logging().encode())
            if self.password_file is not None:
                secret = mm2_config.secrets_text(self.password_file)
                pki.write_private(self.secrets_file, secret.encode())
        except OSError as error:
            raise Failed(
                f"the MirrorMaker of {self.flows.target.idc} cannot be set up: {error}"
            ) from error

    def command(self, lib: Path, record: Path | None = None) -> list[str]:
        """``lib``, ``record``: see jvm.py. Raises Failed."""
        arguments = [
            f"-Dlog4j2.configurationFile={self._logging_file}",
            MAIN,
            str(self.settings_file),
            "--clusters",
            self.flows.target.idc,
        ]
        return jvm.command(lib, "mirror", HEAP_MB, arguments, record)

    def kept(self, lib: Path) -> list[str]:
        """The same, started again whenever it stops working (mirror_keeper.py). Raises Failed."""
        target, shown = self.flows.target, self.credentials
        options = {
            "idc": target.idc,
            "sources": ",".join(source.idc for source in self.flows.sources),
            "brokers": ",".join(target.brokers),
            "ca": shown.ca,
            "cert": shown.certificate,
            "key": shown.key,
        }
        given = [f"--{name}={value}" for name, value in options.items() if value is not None]
        keeper = [sys.executable, "-m", "imctl.engines.mirror_keeper"]
        return [*keeper, *given, "--", *self.command(lib)]

    @property
    def _logging_file(self) -> Path:
        return self.folder / "log4j2.properties"


def logging(path: Path | None = None) -> str:
    """log4j's settings: what matters, to standard output and, where wanted, to a bounded file that
    begins anew with each start."""
    file = "" if path is None else _LOG_FILE.format(path=path)
    return _LOGGING.format(appenders="console" if path is None else "console,file", file=file)


def secrets_file(folder: Path) -> Path:
    """Where the password lies, for ``mm2_config.credentials_of``."""
    return folder / "mm2-secrets.properties"
