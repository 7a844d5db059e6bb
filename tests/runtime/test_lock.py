import multiprocessing

import pytest

from reloss.runtime.errors import UsageError
from reloss.runtime.lock import is_locked, locked


def hold(folder, ready, end):
    with locked(folder):
        ready.set()
        end.wait(60)


@pytest.mark.parametrize("killed", [False, True])
def test_a_lock_lives_as_long_as_its_process(tmp_path, killed):
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready, end))
    process.start()
    assert ready.wait(60)
    assert is_locked(tmp_path)
    with (
        pytest.raises(UsageError, match=f"{tmp_path} is being written by process {process.pid} on .*; wait until"),
        locked(tmp_path),
    ):
        pass
    if killed:
        process.kill()
    else:
        end.set()
    process.join()
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()
    assert list(tmp_path.iterdir()) == []


def look(folder, ready, end):
    while not end.is_set():
        is_locked(folder)
        ready.set()


def test_reading_a_lock_refuses_nobody(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    (tmp_path / ".lock").touch()
    process = context.Process(target=look, args=(tmp_path, ready, end))
    process.start()
    try:
        assert ready.wait(60)
        for _ in range(1000):
            with locked(tmp_path):
                pass
    finally:
        end.set()
        process.join()
