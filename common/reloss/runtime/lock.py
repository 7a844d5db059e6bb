"""One writer at a time: a lock on a folder that dies with its process."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.progress import say

NOT_SUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # as on Lustre mounted without `flock`


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, the file `.lock` in it, for the block; the file is gone after it.

    The system takes the lock back when the process dies, however it dies, so a file that a kill left means nothing. It
    is a POSIX record lock: seen by all machines of a network file system, and not inherited by forked workers, which
    can outlive their parent for a moment. Byte 0 decides who holds it; byte 1 is what `is_locked` looks at.

    Raises:
        UsageError: another process holds it; the message says which.
        RelossError: the folder cannot be written.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path)
    except OSError as error:
        raise RelossError(
            f"cannot write {folder}: {error.strerror or error}; make it writable, or choose another folder"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Return whether another process holds the folder's lock. Refuses nobody who takes it at this moment."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 1)
    except OSError as error:
        return error.errno not in NOT_SUPPORTED
    finally:
        os.close(descriptor)
    return False


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
            fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, 1)  # after those who just look
        except OSError as error:
            if error.errno in NOT_SUPPORTED:
                say(f"{path.parent} cannot be locked here ({error.strerror}): start no second process in it")
                return descriptor
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise UsageError(
                f"{path.parent} is being written by {holder}; wait until it ends, then give the command again"
            ) from None
        if _is_at(descriptor, path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return descriptor
        os.close(descriptor)  # the one before removed the file after it was opened here


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
