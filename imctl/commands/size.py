"""size: the capacity model (imctl.capacity) as a command."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from rich.console import Group as Rows
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from imcore.errors import BadInput
from imctl.capacity import view
from imctl.capacity.figures import Figures
from imctl.capacity.inputs import Workload
from imctl.capacity.model import size as sized
from imctl.capacity.quantity import short
from imctl.capacity.result import Sizing
from imctl.capacity.sensitivity import assumptions, sensitivity
from imctl.options import Format, Output
from imctl.output import emit

FILE_BYTES_MAX = 1 << 20


def _input(field: str, metavar: str = "N") -> Any:
    """A flag for an input; its default is the model's, so that a file's value shows through."""
    found = Workload.model_fields[field]
    words = str(found.description)
    note = "" if found.default is None else f" [default: {_plain(found.default)}]"
    words = f"{words[0].upper()}{words[1:]}{note}."
    name = f"--{field.replace('_', '-')}"
    return typer.Option(name, metavar=metavar, help=words, show_default=False)


def _plain(value: float) -> str:
    return short(value) if value >= 1000 else f"{value:.10g}"


def size(
    file: Annotated[
        Path | None,
        typer.Option(help="YAML file of inputs and `figures:`; flags override it.", metavar="FILE"),
    ] = None,
    daily_users: Annotated[str | None, _input("daily_users")] = None,
    online_share: Annotated[str | None, _input("online_share")] = None,
    devices: Annotated[str | None, _input("devices")] = None,
    messages_per_user: Annotated[str | None, _input("messages_per_user")] = None,
    peak_factor: Annotated[str | None, _input("peak_factor")] = None,
    peak_messages_s: Annotated[str | None, _input("peak_messages_s")] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEMBERS=SHARE",
            help="Share of messages sent to conversations of this size; repeatable "
            "[default: 2=0.75 10=0.18 100=0.06 500=0.01].",
            show_default=False,
        ),
    ] = None,
    message_bytes: Annotated[str | None, _input("message_bytes")] = None,
    heartbeat_s: Annotated[str | None, _input("heartbeat_s")] = None,
    connects_per_day: Annotated[str | None, _input("connects_per_day")] = None,
    idcs: Annotated[str | None, _input("idcs")] = None,
    survivors: Annotated[str | None, _input("survivors")] = None,
    headroom: Annotated[str | None, _input("headroom")] = None,
    replication_factor: Annotated[str | None, _input("replication_factor")] = None,
    retention_days: Annotated[str | None, _input("retention_days")] = None,
    log_hours: Annotated[str | None, _input("log_hours")] = None,
    availability: Annotated[str | None, _input("availability")] = None,
    rto_s: Annotated[str | None, _input("rto_s")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Override a figure (see --figures)."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the formula behind each line.")
    ] = False,
    figures: Annotated[
        bool,
        typer.Option(
            "--figures", help="Show the measured and assumed figures, with their sources."
        ),
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Estimate the resources that a workload needs.

    Shows processes, engines, links, disks and the error budget. Numbers may be written as 18M, 1B
    or 1e9. `~` marks values that depend on an assumed figure instead of a measured one.
    docs/capacity.md has a worked example.

    Example: imctl size --daily-users 10M --messages-per-user 60 --idcs 3
    """
    given = {
        "daily_users": daily_users,
        "online_share": online_share,
        "devices": devices,
        "messages_per_user": messages_per_user,
        "peak_factor": peak_factor,
        "peak_messages_s": peak_messages_s,
        "groups": [_group(text) for text in group] if group else None,
        "message_bytes": message_bytes,
        "heartbeat_s": heartbeat_s,
        "connects_per_day": connects_per_day,
        "idcs": idcs,
        "survivors": survivors,
        "headroom": headroom,
        "replication_factor": replication_factor,
        "retention_days": retention_days,
        "log_hours": log_hours,
        "availability": availability,
        "rto_s": rto_s,
    }
    flags = {name: value for name, value in given.items() if value is not None}
    workload, used = inputs(file, flags)
    used = used.with_(dict(_pair(text) for text in set_ or []), "--set")
    answer = worked_out(workload, used)
    emit(answer.model_dump(mode="json"), output, lambda: _view(answer, explain, figures))


def worked_out(workload: Workload, figures: Figures) -> Sizing:
    """With what it is sensitive to."""
    update = {
        "sensitivity": sensitivity(workload, figures),
        "assumptions": assumptions(workload, figures),
    }
    return sized(workload, figures).model_copy(update=update)


def default_figures() -> Figures:
    """Those that come with imctl."""
    text = (files("imctl.capacity") / "figures.yaml").read_text(encoding="utf-8")
    return Figures.of(yaml.safe_load(text))


# ------------------------------------------------------------------------------------- input


def inputs(file: Path | None, flags: dict[str, Any]) -> tuple[Workload, Figures]:
    """Flags go before the file. Raises BadInput."""
    from_file, figures = read_file(file) if file is not None else ({}, {})
    workload = _workload(from_file, flags, file)
    return workload, default_figures().with_(figures, f"{file}: figures")


def read_file(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs, and figures. Raises BadInput."""
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            raise BadInput(f"{file}: expected a file of inputs, got more than 1 MiB")
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{file}: expected a YAML file, got {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise BadInput(f"{file}{line}: expected YAML, got an error: {why}") from error
    if not isinstance(document, dict):
        got = "an empty file" if document is None else f"a {type(document).__name__}"
        raise BadInput(f"{file}: expected a mapping of inputs to values, got {got}")
    figures = document.pop("figures", {})
    if not isinstance(figures, dict):
        raise BadInput(f"{file}: figures: expected a mapping of names to values")
    return document, figures


def _workload(from_file: dict[str, Any], flags: dict[str, Any], file: Path | None) -> Workload:
    given = {str(name): value for name, value in from_file.items()} | flags
    try:
        return Workload.model_validate(given)
    except ValidationError as error:
        raise BadInput(_problem(error.errors()[0], given, flags, file)) from None


def _problem(
    detail: ErrorDetails, given: dict[str, Any], flags: dict[str, Any], file: Path | None
) -> str:
    """One line that names the flag, or the file and the field."""
    loc = detail["loc"] or (detail["type"],)  # a rule between fields has the name of one as type
    field, place = str(loc[0]), ".".join(map(str, loc))
    where = f"{file}: {place}"
    if field in flags:
        where = "--group" if field == "groups" else f"--{field.replace('_', '-')}"
    if detail["type"] == "extra_forbidden":
        names = [*Workload.model_fields, "figures"] if len(loc) == 1 else ["members", "share"]
        close = difflib.get_close_matches(str(loc[-1]), names, n=1)
        do = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(names)}"
        return f"{file}: unknown input {place}; {do}"
    if detail["type"] == "missing":
        return f"{where}: expected a value, got none"
    got = detail["ctx"]["total"] if not detail["loc"] else repr(_at(given, loc))
    return f"{where}: expected {_expected(detail)}, got {got}"


def _at(given: Any, loc: tuple[int | str, ...]) -> object:
    """As it was written, before it was made a number."""
    for step in loc:
        given = given[step]
    return given


def _expected(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    for bound, words in _BOUNDS.items():
        if bound in context:
            return f"{words} {context[bound]:g}"
    if "min_length" in context:
        return f"at least {context['min_length']} of them"
    if "expected" in context:
        return str(context["expected"])
    if detail["type"] == "int_from_float":
        return "a whole number"
    if detail["type"] in ("tuple_type", "model_type", "model_attributes_type"):
        return "a list of {members: N, share: N}"
    return detail["msg"].removeprefix("Input should be ")


_BOUNDS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}


def _group(text: str) -> dict[str, str]:
    members, equals, share = text.partition("=")
    if not equals:
        raise BadInput(f"--group: expected MEMBERS=SHARE such as 100=0.05, got {text!r}")
    return {"members": members, "share": share}


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise BadInput(f"--set: expected NAME=VALUE such as fold_us=200, got {text!r}")
    return name, value


# -------------------------------------------------------------------------------------- view


def _view(answer: Sizing, explain: bool, figures: bool) -> RenderableType:
    if figures:
        return _figures(answer)
    parts: list[RenderableType] = []
    for section in view.sections(answer):
        parts += [Text(section.title, style="bold"), _table(section, explain), ""]
    parts += [Text(view.total(answer), style="bold"), view.legend(answer)]
    parts += [Text(f"Note: {note}.", style="yellow") for note in answer.notes]
    return Rows(*parts)


def _table(section: view.Section, explain: bool) -> RenderableType:
    table = Table(box=None, pad_edge=False, show_header=any(name.strip() for name in section[1]))
    for name in section.columns:
        right = name.endswith(">")
        table.add_column(name.rstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in section.rows:
        table.add_row(*row)
    if not (explain and section.explains):
        return table
    formulas = Table(box=None, pad_edge=False, show_header=False)
    for row, formula in zip(section.rows, section.explains, strict=True):
        formulas.add_row(Text(f"{row[0]} =", style="dim"), Text(formula, style="dim"))
    return Rows(table, formulas)


def _figures(answer: Sizing) -> Table:
    table = Table("FIGURE", "VALUE", "MEANING AND SOURCE", box=None, pad_edge=False)
    for figure in answer.figures:
        source = f"assumed: {figure.source}" if figure.assumed else figure.source
        table.add_row(
            figure.name, f"{figure.value:g} {figure.unit}", f"{figure.meaning} ({source})"
        )
    return table
