"""A lock on a folder, so that only one process writes to it.

The lock is held by the operating system, not by the existence of a file. The system releases it when the process ends,
however it ends, so a killed process never leaves a folder locked.
"""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.progress import say

NOT_SUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # such as Lustre mounted without `flock`


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder, the file `.lock` in it, during the block; the file is removed at the end.

    It is a POSIX record lock. All machines of a network file system see it, and forked workers, which can outlive their
    parent for a moment, do not inherit it. Byte 0 of the file decides who holds the lock; `is_locked` tests byte 1. A
    `.lock` file left by a killed process has no effect.

    Raises:
        UsageError: another process holds the lock; the message names the process.
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
    """Return whether another process holds the lock. The test never makes a process that takes the lock fail."""
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
    """Lock the file and return its open descriptor, which holds the lock until it is closed."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
            fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, 1)  # waits for processes that test the lock
        except OSError as error:
            if error.errno in NOT_SUPPORTED:
                say(f"{path.parent} cannot be locked here ({error.strerror}): start no second process in it")
                return descriptor
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise UsageError(
                f"{path.parent} is being written by {holder}; wait until it ends, then run the command again"
            ) from None
        if _is_at(descriptor, path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return descriptor
        os.close(descriptor)  # the previous holder removed the file after it was opened here


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether the open file is still the file at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
