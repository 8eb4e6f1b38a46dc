"""The live view of a run: a screen that refreshes on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Protocol, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from imctl.report.model import Mark
from imctl.statusview import COLOURS
from services.loadgen.stats import Sample

LINE_EVERY_S = 5.0
HAPPENED_MAX = 12
BARS = "▁▂▃▄▅▆▇█"
HISTORY = 60


class View(Protocol):
    """What a run tells its viewer."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def step(self, text: str) -> None:
        """What is being done now."""
        ...

    def mark(self, mark: Mark) -> None: ...

    def sample(self, sample: Sample) -> None: ...


def make_view(console: Console, idcs: list[str]) -> View:
    return Screen(console, idcs) if console.is_terminal else Lines(console, idcs)


class Lines:
    """For pipes and logs: a line for everything that happens, and one every few seconds."""

    def __init__(self, console: Console, idcs: list[str]) -> None:
        self._console = console
        self._idcs = idcs
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return

    def step(self, text: str) -> None:
        self._console.out(f"== {text}", highlight=False)

    def mark(self, mark: Mark) -> None:
        self._console.out(f"{mark.t:6.1f} s  {mark.text}", highlight=False)

    def sample(self, sample: Sample) -> None:
        if sample.t < self._next:
            return
        self._next = sample.t + LINE_EVERY_S
        where = " ".join(
            f"{idc}={sample.states.get(idc, '?')}/{sample.connections.get(idc, 0)}"
            for idc in self._idcs
        )
        lag = max(sample.lag_ms.values(), default=0.0)
        self._console.out(
            f"{sample.t:6.1f} s  offered {sample.offered:.0f}/s acked {sample.acked:.0f}/s "
            f"delivered {sample.deliveries:.0f}/s waiting {sample.waiting} "
            f"ack p50/p99 {sample.ack_p50_ms:.0f}/{sample.ack_p99_ms:.0f} ms "
            f"lag {lag:.0f} ms  {where}",
            highlight=False,
        )


class Screen:
    """For terminals; a refresh each second."""

    def __init__(self, console: Console, idcs: list[str]) -> None:
        self._idcs = idcs
        self._step = ""
        self._happened: deque[Mark] = deque(maxlen=HAPPENED_MAX)
        self._rates: deque[float] = deque(maxlen=HISTORY)
        self._sample = Sample(t=0.0)
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def step(self, text: str) -> None:
        self._step = text
        self._refresh()

    def mark(self, mark: Mark) -> None:
        self._happened.append(mark)
        self._refresh()

    def sample(self, sample: Sample) -> None:
        self._sample = sample
        self._rates.append(sample.acked)
        self._refresh()

    def _refresh(self) -> None:
        self._live.update(self.render(), refresh=True)

    def render(self) -> Group:
        now = self._sample
        happened = [Text(f"{mark.t:6.1f} s  {mark.text}") for mark in self._happened]
        return Group(
            Text(f"{now.t:6.1f} s  {self._step}", style="bold"),
            self._table(),
            Text(
                f"offered {now.offered:.0f}/s  acked {now.acked:.0f}/s  delivered "
                f"{now.deliveries:.0f}/s  waiting {now.waiting}  failed {now.failed:.0f}/s"
            ),
            Text(
                f"ack p50/p99 {now.ack_p50_ms:.1f}/{now.ack_p99_ms:.1f} ms  "
                f"receive p50/p99 {now.receive_p50_ms:.0f}/{now.receive_p99_ms:.0f} ms"
            ),
            Text(f"acked/s {_bars(self._rates)}"),
            *happened,
        )

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE)
        table.add_column("IDC")
        table.add_column("state")
        table.add_column("devices", justify="right")
        for idc in self._idcs:
            table.add_column(f"lag to {idc}", justify="right")
        now = self._sample
        for idc in self._idcs:
            state = now.states.get(idc, "?")
            lags = [
                "·" if other == idc else _ms(now.lag_ms.get(f"{idc}->{other}"))
                for other in self._idcs
            ]
            table.add_row(
                idc,
                Text(state, style=COLOURS.get(state, "")),
                str(now.connections.get(idc, 0)),
                *lags,
            )
        table.add_row("none", "", str(now.connections.get("", 0)))
        return table


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _bars(values: deque[float]) -> str:
    top = max([*values, 1.0])
    return "".join(BARS[min(7, int(value / top * 7.99))] for value in values)
