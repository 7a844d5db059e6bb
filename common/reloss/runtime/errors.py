"""Errors that a user can fix: one clear message, no traceback."""

import difflib
from collections.abc import Iterable

CLEARLY_WORSE = 0.1  # a name whose similarity is this much below the best one is not suggested


class RelossError(Exception):
    """A failure whose message names the cause and the remedy; the command line exits with `exit_code`."""

    exit_code = 1


class UsageError(RelossError):
    """A request for something that does not exist or does not fit; exit code 2."""

    exit_code = 2


class Unavailable(RelossError):
    """Something that a run needs from outside is missing, such as a package or a model."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for an unknown name; its message suggests the most similar names, or lists all if none is.

    Args:
        kind: what the name stands for, such as "experiment".
        name: the unknown name.
        known: the valid names.
    """
    known = sorted(known)
    same_letters = [other for other in known if other.lower() == name.strip().lower()]
    similar = same_letters or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    similar = similar or [other for other in known if _is_part(name.lower(), other.lower())]
    if similar:
        cutoff = difflib.SequenceMatcher(None, similar[0], name).ratio() - CLEARLY_WORSE
        similar = difflib.get_close_matches(name, similar, n=3, cutoff=max(cutoff, 0))
    hint = f"did you mean {' or '.join(similar)}?" if similar else f"valid: {', '.join(known) or 'none'}"
    return UsageError(f"unknown {kind} '{name}'; {hint}")


def _is_part(name: str, other: str) -> bool:
    """Return whether a name continues another one, such as f1_scores, or is a part of it, such as digits."""
    return (len(other) > 1 and name.startswith(other)) or (len(name) > 2 and name in other)
