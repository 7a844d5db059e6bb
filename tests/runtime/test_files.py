import os
import socket
import threading

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


def test_a_symbolic_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link.html"
    for target in (tmp_path / "folder" / "page.html", tmp_path / "folder" / "other.html"):  # the second one dangles
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        files.write_output(link, "page")
        assert link.is_symlink()
        assert target.read_text() == "page"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "link.html", "other.html", "page.html"]


def test_an_output_goes_into_a_named_pipe(tmp_path):
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    files.write_output(pipe, "page")
    reader.join(timeout=10)
    assert received == ["page"]
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", r"cannot write \.: it is a folder; name a file"),
        ("..", "it is a folder"),
        ("folder", "it is a folder"),
        ("socket", "it is a device"),
        ("/no such folder of tests/a/page.html", "there is no folder /no such folder of tests; create it"),
    ],
)
def test_what_is_no_file_to_write_is_refused(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as device:  # a real device would be lost if the check failed
        device.bind("socket")
        with pytest.raises(UsageError, match=message):
            files.write_output(files.Path(name), "page")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "socket"]


def test_an_output_in_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RelossError, match=r"cannot write .*page\.html: (Not a directory|File exists)"):
        files.write_output(tmp_path / "file" / "page.html", "page")
    files.write_output(tmp_path / "new" / "folder" / "page.html", "page")
    assert (tmp_path / "new" / "folder" / "page.html").read_text() == "page"


def test_the_unfinished_files_of_a_killed_writer_are_removed(tmp_path):
    for name in (".a.json.123.tmp", ".tmpAb3xYz", "a.json", ".hidden"):  # the second by the safetensors library
        (tmp_path / name).write_text("")
    files.remove_stale(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "a.json"]


def test_a_name_in_another_encoding_can_be_hashed_and_written(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    path.write_text("pixels")
    first = files.hash_of_files(tmp_path, [path])
    assert first != files.hash_of_files(tmp_path, [path.rename(tmp_path / "cafe.png")])
    assert len(files.short_hash(path.name)) == 12
    files.write_json(tmp_path / "cause.json", {"cause": path.name})
    assert files.read_json(tmp_path / "cause.json") == {"cause": "caf?.png"}


MERGES = "\n".join(["a0: &a0 {k: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join(9 * [f'*a{n - 1}'])}]}}" for n in range(1, 9))])


@pytest.mark.parametrize("text", ["!!bool maybe", "!!timestamp x", "!!int ''", "!!float ''", MERGES, "- &a [*a]"])
def test_damaged_yaml_is_one_error(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RelossError, match=r"config\.yaml (is damaged|cannot be read as YAML)"):
        files.read_object(tmp_path / "config.yaml")


def test_a_file_of_a_data_set_may_be_large(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 10)
    path = tmp_path / "annotations.json"
    files.write_json(path, list(range(20)))
    assert files.read_data(path) == list(range(20))
    with pytest.raises(RelossError, match="too large"):
        files.read_json(path)
    path.write_text("[" * 5_000)
    with pytest.raises(RelossError, match=r"annotations\.json is damaged \(nested too deeply\)"):
        files.read_data(path)
