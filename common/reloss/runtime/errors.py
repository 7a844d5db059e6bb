"""Errors that a user can fix: one clear message, no traceback."""

import difflib
from collections.abc import Iterable


class RelossError(Exception):
    """A failure whose message names the cause and the remedy; the command line exits with `exit_code`."""

    exit_code = 1


class UsageError(RelossError):
    """A request for something that does not exist or does not fit; exit code 2."""

    exit_code = 2


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for an unknown name; its message suggests similar names, or lists all if none is similar.

    Args:
        kind: what the name stands for, such as "experiment".
        name: the unknown name.
        known: the valid names.
    """
    known = sorted(known)
    similar = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(similar)}?" if similar else f"valid: {', '.join(known) or 'none'}"
    return UsageError(f"unknown {kind} '{name}'; {hint}")
