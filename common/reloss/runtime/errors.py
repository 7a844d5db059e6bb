"""Failures that a user can mend: one clear message, no traceback."""

import difflib
from collections.abc import Iterable


class RelossError(Exception):
    """A failure with a message that names the cause and the way out; the command line exits with `exit_code`."""

    exit_code = 1


class UsageError(RelossError):
    """What was asked for does not exist or does not fit; exit code 2."""

    exit_code = 2


def unknown(what: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for a misspelt `name`, with the nearest valid ones (all of them if none is near)."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"valid: {', '.join(known) or 'none'}"
    return UsageError(f"unknown {what} '{name}'; {hint}")
