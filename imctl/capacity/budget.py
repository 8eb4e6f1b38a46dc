"""The error budget: what an availability leaves to lose."""

from __future__ import annotations

from imctl.capacity.inputs import Workload
from imctl.capacity.result import Line

YEAR_S = 365.25 * 86_400
MONTH_S = YEAR_S / 12


def lines(workload: Workload) -> list[Line]:
    w = workload
    bad = 1 - w.availability
    month_s = bad * MONTH_S
    losses = month_s / (w.rto_s / w.idcs)
    return [
        Line.of("budget_month", "Full outage per month", month_s, "s",
                "(1 - availability) x a year / 12"),
        Line.of("budget_year", "Full outage per year", bad * YEAR_S, "s",
                "(1 - availability) x 365.25 days"),
        Line.of("failed_month", "Messages that may fail per month",
                w.messages_a_day * MONTH_S / 86_400 * bad, "msg",
                "messages per month x (1 - availability)"),
        Line.of("losses_month", "IDC losses that fit per month", losses, "",
                "full outage per month / (rto_s / idcs)"),
    ]  # fmt: skip
