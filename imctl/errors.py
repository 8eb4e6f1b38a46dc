"""What went wrong -> one line on stderr and an exit status that scripts can act on."""

from __future__ import annotations

import os
import sys

from imcore.errors import BadInput, Code, ImError, OutcomeUnknown, Refused, Unavailable

OK = 0  # done, or no difference
ERROR = 1  # failed, or only partly done
USAGE = 2  # wrong usage or a wrong file; `plan`, `diff`: there is a difference
GUARDED = 3  # refused by a rule or for lack of rights, nothing changed; or a paused deploy
UNKNOWN = 4  # unknown whether it happened, see `imctl op show ID`; a drill: inconclusive
DEVIATED = 5  # a drill showed that a promise does not hold
ABORTED = 6  # the operation, rollout or drill was aborted: undone, or stopped where it was

DEBUG = "IMCTL_DEBUG"


class Failed(ImError):
    """Something on this machine prevents it; the message says what, and what to do."""


class Denied(Failed):
    """Who was asked has said no: no use in asking again before something is changed."""


class Guarded(ImError):
    """A guard refused, before anything was changed, or in a deploy that is paused by it. The
    message names the rule."""


class Aborted(ImError):
    """An operation that was waited for was aborted by somebody."""


def exit_code(error: ImError) -> int:
    if isinstance(error, BadInput):
        return USAGE
    if isinstance(error, Guarded) or (isinstance(error, Refused) and error.code is Code.FORBIDDEN):
        return GUARDED
    if isinstance(error, Aborted):
        return ABORTED
    return UNKNOWN if isinstance(error, OutcomeUnknown) else ERROR


def first(group: ExceptionGroup[ImError]) -> ImError:
    """Of tasks that failed together, usually for one reason."""
    error = group.exceptions[0]
    return first(error) if isinstance(error, ExceptionGroup) else error


def report(error: ImError) -> int:
    """Print the error; returns the exit status. With --debug the traceback stands above."""
    if os.environ.get(DEBUG):
        import traceback

        traceback.print_exception(error)
    unknown = " (the outcome is unknown)" if isinstance(error, OutcomeUnknown) else ""
    again = ""
    if isinstance(error, Unavailable):
        again = "; trying again later may help"
    print(f"error: {error}{unknown}{again}", file=sys.stderr)
    return exit_code(error)
