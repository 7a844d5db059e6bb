import pytest

from reloss.runtime import files
from reloss.runtime.errors import RelossError, UsageError


def test_a_hash_of_many_files_reads_an_evenly_spread_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_HASHED_FILES", 4)
    paths = [tmp_path / f"{number}.png" for number in range(10)]
    for path in paths:
        path.write_bytes(b"pixels")
    original, detected = files.hash_of_files(tmp_path, paths), []
    for path in paths:
        path.write_bytes(b"PIXELS")
        detected.append(files.hash_of_files(tmp_path, paths) != original)
        path.write_bytes(b"more pixels")
        assert files.hash_of_files(tmp_path, paths) != original
        path.write_bytes(b"pixels")
    assert [number for number, changed in enumerate(detected) if changed] == [0, 3, 6, 9]
    assert files.hash_of_files(tmp_path, paths[:1]) != files.hash_of_files(tmp_path, paths[1:2])
    assert files.hash_of_files(tmp_path, []) == files.hash_of_files(tmp_path / "elsewhere", [])


def test_the_error_names_the_file_that_cannot_be_hashed(tmp_path):
    with pytest.raises(RelossError, match=f"{tmp_path / 'gone'} cannot be read: No such file or directory"):
        files.hash_of_files(tmp_path, [tmp_path / "gone"])


def test_atomic_raises_other_errors_unchanged(tmp_path):
    with pytest.raises(ZeroDivisionError), files.atomic(tmp_path / "file"):
        raise ZeroDivisionError
    with pytest.raises(UsageError, match="mine"), files.atomic(tmp_path / "file"):
        raise UsageError("mine")
    assert list(tmp_path.iterdir()) == []
