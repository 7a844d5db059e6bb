import pytest

from reloss.runtime import files
from reloss.runtime.errors import RelossError


def test_a_hash_of_many_files_reads_some_of_them_spread_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SAMPLED", 4)
    paths = [tmp_path / f"{number}.png" for number in range(10)]
    for path in paths:
        path.write_bytes(b"pixels")
    before, seen = files.hash_of_files(tmp_path, paths), []
    for path in paths:
        path.write_bytes(b"PIXELS")
        seen.append(files.hash_of_files(tmp_path, paths) != before)
        path.write_bytes(b"more pixels")
        assert files.hash_of_files(tmp_path, paths) != before
        path.write_bytes(b"pixels")
    assert [number for number, changed in enumerate(seen) if changed] == [0, 3, 6, 9]
    assert files.hash_of_files(tmp_path, paths[:1]) != files.hash_of_files(tmp_path, paths[1:2])
    assert files.hash_of_files(tmp_path, []) == files.hash_of_files(tmp_path / "elsewhere", [])


def test_a_file_that_cannot_be_hashed_is_named(tmp_path):
    with pytest.raises(RelossError, match=f"{tmp_path / 'gone'} cannot be read: No such file or directory"):
        files.hash_of_files(tmp_path, [tmp_path / "gone"])
