"""How a run ended: the status in its record, a log of the error, and its cause if another process failed first.

Of several processes, the one that fails first brings the others down: they see a closed connection, or torchrun sends
them SIGTERM. So each process but the main one leaves its error in a file, and the main one reports the first of these
as the cause.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reloss.experiment.record import Record
from reloss.experiment.status import Status
from reloss.runtime import distributed
from reloss.runtime.errors import RelossError, Unavailable, UsageError
from reloss.runtime.files import remove_stale, write_text
from reloss.runtime.signals import Terminated


def clean_up(folder: Path) -> None:
    """Remove what an earlier session of the run may have left: unfinished writes, and the errors of its processes."""
    remove_stale(folder)
    for path in folder.glob("error.*.log"):
        path.unlink()


@contextmanager
def recorded_outcome(record: Record, is_new: bool = False) -> Iterator[None]:
    """Write into the record how the block ended, unless it ended well.

    SIGTERM and Ctrl-C make the run `interrupted`, everything else `failed`. If another process failed first, its error
    becomes the cause. A UsageError before the first metrics, such as an unknown model, removes the record instead: no
    run of that name can succeed. So does a package or a model that is missing.

    Args:
        record: the record.
        is_new: whether this run created the record.

    Raises:
        RelossError: another process failed first.
    """
    try:
        yield
    except BaseException as error:
        if not distributed.is_main():
            _leave_error(record.path, error)
            raise
        remote_cause = _first_error(record.path)
        if _is_interruption(error) and not remote_cause:
            record.close(Status.INTERRUPTED)
            raise
        if is_new and isinstance(error, UsageError | Unavailable) and not record.metrics.lines:
            record.discard()
            raise
        with suppress(OSError, RelossError):  # such as a full disk, which `error` reports already
            write_text(record.path / "error.log", traceback.format_exc())
            record.close(Status.FAILED, cause=remote_cause or _describe(error))
        if remote_cause:
            raise RelossError(remote_cause) from error
        raise


def _is_interruption(error: BaseException) -> bool:
    return isinstance(error, KeyboardInterrupt | Terminated)


def _describe(error: BaseException) -> str:
    return str(error) if isinstance(error, RelossError) else f"{type(error).__name__}: {error}"


def _leave_error(folder: Path, error: BaseException) -> None:
    """Write this process's error to a file, for the main process."""
    if not _is_interruption(error):
        with suppress(OSError, RelossError):
            text = f"process {distributed.rank()}: {_describe(error)}\n\n{traceback.format_exc()}"
            write_text(folder / f"error.{distributed.rank()}.log", text)


def _first_error(folder: Path) -> str:
    """Return the first error that another process left; the empty string if there is none."""
    logs = sorted(folder.glob("error.*.log"), key=lambda path: path.stat().st_mtime_ns)
    return logs[0].read_text(encoding="utf-8").partition("\n")[0] if logs else ""
