"""The states of a run. Imports no torch."""

from enum import StrEnum


class Status(StrEnum):
    """The state of a run. The reason is a separate text, such as the `cause` in a record's summary.

    A record states those in RECORDED. `reloss status` derives the others from locks, notes and the scheduler's queue.
    """

    RUNNING = "running"
    INTERRUPTED = "interrupted"  # by Ctrl-C, SIGTERM or the scheduler; the same command resumes it
    FAILED = "failed"
    FINISHED = "finished"

    NOT_RUN = "not_run"  # there is no record
    QUEUED = "queued"  # submitted to a scheduler
    KILLED = "killed"  # its record says running, but no process holds its lock
    DAMAGED = "damaged"  # its record, its bank or its note cannot be read


RECORDED = (Status.RUNNING, Status.INTERRUPTED, Status.FAILED, Status.FINISHED)
"""The states that a record states."""
