"""``imctl``: the command line. A command's module is imported only when the command is called."""

from __future__ import annotations

import errno
import io
import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from imcore.errors import ImError
from imcore.roles import Role
from imcore.starting import uncollected
from imctl import errors, roles
from imctl.group import Commands

# name -> (module, attribute, the first sentence of its help). An attribute that is a Typer is a
# group of commands. The sentence is said twice, here and there: `imctl --help` imports no command.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "up": ("imctl.commands.lifecycle", "up", "Start a region file's deployment on this machine."),
    "down": ("imctl.commands.lifecycle", "down", "Stop a deployment; its data is kept."),
    "attach": (
        "imctl.commands.lifecycle",
        "attach",
        "Register a deployment that something else runs.",
    ),
    "status": (
        "imctl.commands.status",
        "status",
        "Show IDC states, sessions, replication lag and alarms.",
    ),
    "demo": ("imctl.demo", "demo", "Kill an IDC under load and check that nothing was lost."),
    "validate": ("imctl.commands.files", "validate", "Check region files."),
    "plan": ("imctl.commands.plan", "plan", "Show what a region file would change, and how."),
    "diff": (
        "imctl.commands.plan",
        "diff",
        "Show how a region file differs from the running deployment.",
    ),
    "deploy": ("imctl.commands.deploy", "deploy", "Apply a region file, one IDC at a time."),
    "scale": (
        "imctl.commands.scale",
        "scale",
        "Change the number of gateways or ipconfs of an IDC.",
    ),
    "rollout": ("imctl.commands.deploy", "rollout", "Show, pause, resume or undo a deploy."),
    "destroy": ("imctl.commands.destroy", "destroy", "Stop a deployment and delete its data."),
    "check": ("imctl.commands.files", "check", "Judge a recorded history of what clients saw."),
    "pki": (
        "imctl.commands.files",
        "pki",
        "Create, show and rotate certificates and region keys.",
    ),
    "size": ("imctl.commands.size", "size", "Estimate the resources that a workload needs."),
    "engines": (
        "imctl.commands.engines",
        "engines",
        "Build engines, check Kafka's topics, render objects for Kubernetes.",
    ),
    "migrate": (
        "imctl.commands.migrate",
        "migrate",
        "Move the KV to another engine while it serves.",
    ),
    "replication": (
        "imctl.commands.replication",
        "replication",
        "Generate and check MirrorMaker 2 settings.",
    ),
    "logs": ("imctl.commands.lifecycle", "logs", "Show the logs of one unit or of all units."),
    "ipconf": (
        "imctl.commands.ipconf",
        "ipconf",
        "Show which IDCs and gateways a client would be given.",
    ),
    "token": ("imctl.commands.chat", "token", "Create a client token."),
    "service-token": (
        "imctl.commands.service",
        "service_token",
        "Create an admin API token for a server.",
    ),
    "send": ("imctl.commands.chat", "send", "Send a message as a user."),
    "tail": ("imctl.commands.chat", "tail", "Follow what a user's device receives."),
    "conversations": ("imctl.commands.inbox", "conversations", "List a user's conversations."),
    "search": ("imctl.commands.inbox", "search", "Search a user's conversations."),
    "kick": ("imctl.commands.users", "kick", "Disconnect a user's devices in every IDC."),
    "web": ("imctl.commands.web", "web", "Chat as a user in a browser."),
    "load": ("imctl.commands.load", "load", "Generate chat load and judge the result."),
    "cordon": ("imctl.commands.traffic", "cordon", "Stop sending new clients to an IDC."),
    "uncordon": ("imctl.commands.traffic", "uncordon", "Send new clients to a cordoned IDC again."),
    "drain": ("imctl.commands.traffic", "drain", "Move all clients away from an IDC."),
    "undrain": ("imctl.commands.traffic", "undrain", "Cancel a drain that is in progress."),
    "switchover": (
        "imctl.commands.traffic",
        "switchover",
        "Move all clients of one IDC to another.",
    ),
    "failover": (
        "imctl.commands.traffic",
        "failover",
        "Declare an IDC failed and send its clients elsewhere.",
    ),
    "failback": (
        "imctl.commands.traffic",
        "failback",
        "Return clients to a failed or drained IDC, in steps.",
    ),
    "retire": ("imctl.commands.traffic", "retire", "Stop keeping logs for a lost IDC."),
    "audit": ("imctl.commands.audit", "audit", "Show who did what, and verify the audit logs."),
    "archive": ("imctl.commands.archive", "archive", "Copy old messages to Parquet files."),
    "query": ("imctl.commands.archive", "query", "Query an archive with SQL."),
    "op": ("imctl.commands.op", "op", "Show, pause, resume, abort or approve operations."),
    "start": ("imctl.commands.lifecycle", "start", "Start a killed IDC or unit."),
    "restart": (
        "imctl.commands.lifecycle",
        "restart",
        "Restart an IDC's gateways, route instances and ipconfs, one at a time.",
    ),
    "kill": ("imctl.commands.lifecycle", "kill", "Kill the processes of an IDC (SIGKILL)."),
    "wipe": ("imctl.commands.lifecycle", "wipe", "Delete the data of a stopped IDC."),
    "pause": ("imctl.commands.lifecycle", "pause", "Freeze the processes of an IDC (SIGSTOP)."),
    "resume": ("imctl.commands.lifecycle", "resume", "Resume a paused IDC (SIGCONT)."),
    "partition": ("imctl.commands.faults", "partition", "Cut the link between two IDCs."),
    "slow": ("imctl.commands.faults", "slow", "Slow down the link between two IDCs."),
    "heal": ("imctl.commands.faults", "heal", "Restore one link or all links."),
    "fault": ("imctl.commands.faults", "fault", "Shift an IDC's clock; fill or slow its disk."),
    "drill": (
        "imctl.commands.drill",
        "drill",
        "Break things on purpose under load and judge the result.",
    ),
    "operator": (
        "imctl.commands.operating",
        "operator",
        "Run the Kubernetes operator, or print its CRDs.",
    ),
}


class _PipeClosed(Exception):
    """The reader of our output has closed it."""


class LazyGroup(Commands):
    """Knows every command's name and summary; loads a command when it is resolved."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (_, _, summary) in COMMANDS.items():
            self.add_command(TyperCommand(name=name, help=summary, rich_markup_mode=None))

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)  # in this order

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # Typer would make it an exit status of 1
            raise _PipeClosed from None
        except typer.Abort:
            if sys.stdin.isatty():
                raise
            print(file=sys.stderr)  # behind the question
            raise errors.Failed(
                "not confirmed, so nothing was done; in a script, confirm with an option (see "
                "--help)"
            ) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if command is not None and name is not None else None, rest


def load(name: str) -> Any:
    """The real command of this name."""
    module, attribute, summary = COMMANDS[name]
    with uncollected():
        found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(rich_markup_mode=None, add_completion=False)
        single.command(name, help=found.__doc__ or summary)(found)
        found = single
    command = typer.main.get_command(found)
    command.name = name
    return command


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version as installed

        print(installed("imctl"))
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    role: Annotated[
        Role | None,
        typer.Option(
            "--as",
            help="Use this role's certificate [default: $IMCTL_AS, else the highest role whose "
            "key is in the deployment's pki folder].",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        bool,
        # Eager: it wants no command.
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Deploy, operate and drill an active-active instant-messaging service in several data centres.

    Exit status: 0 done; 1 failed or only partly done; 2 wrong usage, a wrong file, or a
    difference; 3 refused by a safety rule or for lack of rights; 4 outcome unknown; 5 a drill
    deviated; 6 aborted.
    """
    if debug:
        os.environ[errors.DEBUG] = "1"
    if role is not None:
        os.environ[roles.VARIABLE] = role


# What a disk says, whoever writes to it; those who write name the file where they can.
_OF_DISKS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that the terminal lacks is no error
            stream.reconfigure(errors="backslashreplace")
    try:
        _run()
    except ImError as error:
        raise SystemExit(errors.report(error)) from None
    except ExceptionGroup as group:
        expected, others = group.split(ImError)
        if expected is None or others is not None:
            raise
        raise SystemExit(errors.report(errors.first(expected))) from None
    except (_PipeClosed, BrokenPipeError):
        # `imctl ... | head`: not an error; no second complaint when stdout is flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(errors.OK) from None
    except OSError as error:
        if error.filename is None and error.errno not in _OF_DISKS:
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        failed = errors.Failed(f"{where}{error.strerror}").with_traceback(error.__traceback__)
        raise SystemExit(errors.report(failed)) from None


def _run() -> None:
    """What is printed is out when this ends."""
    try:
        app()
    except SystemExit:
        sys.stdout.flush()
        raise


if __name__ == "__main__":
    main()
