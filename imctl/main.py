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
from imctl import errors, roles
from imctl.group import Commands

# name -> (module, attribute, what it does). An attribute that is a Typer is a group of commands.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "up": ("imctl.commands.lifecycle", "up", "Start the deployment of a region file."),
    "down": ("imctl.commands.lifecycle", "down", "Stop the deployment; its data stay."),
    "attach": ("imctl.commands.lifecycle", "attach", "Take up a deployment that runs elsewhere."),
    "status": ("imctl.commands.status", "status", "Show states, connections, rates and lag."),
    "demo": ("imctl.demo", "demo", "Lose an IDC under load and prove that nothing is lost."),
    "validate": ("imctl.commands.files", "validate", "Check a region file."),
    "plan": ("imctl.commands.plan", "plan", "Show what a region file would change, and take."),
    "diff": ("imctl.commands.plan", "diff", "Show in which fields a region file differs."),
    "deploy": ("imctl.commands.deploy", "deploy", "Bring a region file to its deployment."),
    "scale": ("imctl.commands.scale", "scale", "Change how many gateways an IDC runs."),
    "rollout": ("imctl.commands.deploy", "rollout", "Look at a deploy; pause, resume, undo it."),
    "destroy": ("imctl.commands.destroy", "destroy", "Stop a deployment and delete its data."),
    "check": ("imctl.commands.files", "check", "Judge a recorded history of what clients saw."),
    "pki": ("imctl.commands.files", "pki", "Make and show the region's certificates."),
    "size": ("imctl.commands.size", "size", "Work out what a workload needs."),
    "engines": ("imctl.commands.engines", "engines", "Find and build etcd and its like."),
    "migrate": ("imctl.commands.migrate", "migrate", "Move to another engine while it serves."),
    "replication": (
        "imctl.commands.replication",
        "replication",
        "Make and check MirrorMaker 2's settings.",
    ),
    "logs": ("imctl.commands.lifecycle", "logs", "Show the logs of an IDC, or of all."),
    "ipconf": ("imctl.commands.ipconf", "ipconf", "Ask where a client would be sent."),
    "token": ("imctl.commands.chat", "token", "Mint a client token."),
    "service-token": ("imctl.commands.service", "service_token", "Mint a server's token."),
    "send": ("imctl.commands.chat", "send", "Send a message as a user."),
    "tail": ("imctl.commands.chat", "tail", "Follow what a user's device is shown."),
    "conversations": ("imctl.commands.inbox", "conversations", "List a user's conversations."),
    "search": ("imctl.commands.inbox", "search", "Find messages in a user's conversations."),
    "kick": ("imctl.commands.users", "kick", "End sessions of a user's devices."),
    "web": ("imctl.commands.web", "web", "Chat as a user in a browser."),
    "load": ("imctl.commands.load", "load", "Put load on a deployment and judge its history."),
    "cordon": ("imctl.commands.traffic", "cordon", "Send no new clients to an IDC."),
    "uncordon": ("imctl.commands.traffic", "uncordon", "Send new clients to an IDC again."),
    "drain": ("imctl.commands.traffic", "drain", "Move every client away from an IDC."),
    "undrain": ("imctl.commands.traffic", "undrain", "Take a drained IDC back into service."),
    "switchover": ("imctl.commands.traffic", "switchover", "Move an IDC's clients to another."),
    "failover": ("imctl.commands.traffic", "failover", "Declare an IDC failed."),
    "failback": ("imctl.commands.traffic", "failback", "Return traffic to a recovered IDC."),
    "retire": ("imctl.commands.traffic", "retire", "Give an IDC up: logs are cut without it."),
    "audit": ("imctl.commands.audit", "audit", "Show who did what; verify the audit logs."),
    "archive": ("imctl.commands.archive", "archive", "Copy old messages into Parquet files."),
    "query": ("imctl.commands.archive", "query", "Ask an archive with SQL."),
    "op": ("imctl.commands.op", "op", "Look at operations; pause, resume, abort them."),
    "start": ("imctl.commands.lifecycle", "start", "Start an IDC that was killed."),
    "restart": ("imctl.commands.lifecycle", "restart", "Restart gateways under their clients."),
    "kill": ("imctl.commands.lifecycle", "kill", "kill -9 every process of an IDC."),
    "wipe": ("imctl.commands.lifecycle", "wipe", "Delete the data of an IDC that is down."),
    "pause": ("imctl.commands.lifecycle", "pause", "Freeze an IDC's processes (SIGSTOP)."),
    "resume": ("imctl.commands.lifecycle", "resume", "Let a paused IDC go on (SIGCONT)."),
    "partition": ("imctl.commands.faults", "partition", "Cut the link between two IDCs."),
    "slow": ("imctl.commands.faults", "slow", "Slow the link between two IDCs down."),
    "heal": ("imctl.commands.faults", "heal", "Undo partition and slow, of one link or of all."),
    "fault": ("imctl.commands.faults", "fault", "Shift an IDC's clock, fill its disk."),
    "drill": ("imctl.commands.drill", "drill", "Break things on purpose, and be judged."),
    "operator": ("imctl.commands.operating", "operator", "Run the Kubernetes operator."),
}


class _PipeClosed(Exception):
    """Whoever reads has enough."""


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
                "nobody said yes, so nothing was done; a script has to say it by an option (see "
                "--help)"
            ) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if command is not None and name is not None else None, rest


def load(name: str) -> Any:
    """The real command of this name."""
    module, attribute, summary = COMMANDS[name]
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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    role: Annotated[
        Role | None,
        typer.Option(
            "--as",
            help="Show this role's certificate [default: $IMCTL_AS, or the highest whose key is "
            "in the deployment's pki folder].",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        bool,
        # Eager: it wants no command.
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Deploy, fail over and drill a multi-region active-active IM system.

    Exit status: 0 done, 1 error or only partly done, 2 wrong usage or file, or a difference,
    3 a guard or a role refused, 4 outcome unknown, 5 a drill deviated, 6 aborted.
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
