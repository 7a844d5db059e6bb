import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reloss.runtime import download
from reloss.runtime.errors import RelossError

CONTENT = bytes(range(256)) * 2000
MD5, SHA256 = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    """A server of one file, which can resume a transfer, hang up early, or refuse to resume."""

    class Handler(BaseHTTPRequestHandler):
        hang_up_after = None
        ranges = True
        states_length = True
        requested_ranges: list[str | None] = []  # noqa: RUF012

        def do_GET(self):
            requested = self.headers["Range"]
            self.requested_ranges.append(requested)
            start = int(requested.removeprefix("bytes=").rstrip("-")) if requested and self.ranges else 0
            if start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if self.states_length:
                self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            self.wfile.write(CONTENT[start:][: self.hang_up_after])

        def log_message(self, *_):
            pass

    Handler.requested_ranges = []
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{running.server_port}/file"
    yield Handler
    running.shutdown()
    running.server_close()


def test_a_file_is_fetched_once(server, tmp_path):
    path = tmp_path / "new" / "file"
    for _ in range(2):
        download.fetch(server.url, path, MD5)
        assert path.read_bytes() == CONTENT
    assert server.requested_ranges == [None]
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_is_resumed(server, tmp_path, ranges):
    path = tmp_path / "file"
    server.hang_up_after, server.ranges = 100_000, ranges
    with pytest.raises(RelossError, match=r"cannot download .*the connection ended 412000 bytes too early; try again"):
        download.fetch(server.url, path, MD5)
    assert not path.exists()
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:100_000]
    server.hang_up_after = None
    download.fetch(server.url, path, MD5)
    assert path.read_bytes() == CONTENT
    assert server.requested_ranges == [None, "bytes=100000-"]


def test_a_complete_part_is_not_downloaded_again(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    download.fetch(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_file_with_another_checksum_is_removed(server, tmp_path):
    for wrong in (32 * "0", 64 * "0"):
        kind, actual = ("MD5", MD5) if len(wrong) == 32 else ("SHA256", SHA256)
        with pytest.raises(RelossError, match=f"{kind} sum {actual}, not {wrong}; it was removed"):
            download.fetch(server.url, tmp_path / "file", wrong)
    assert list(tmp_path.iterdir()) == []
    download.fetch(server.url, tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_without_a_stated_checksum_the_sum_of_the_first_download_counts(server, tmp_path, capsys):
    path = tmp_path / "file"
    download.fetch(server.url, path, None)
    assert (
        f"no source states a checksum; the sum of this first download, {SHA256}, is stored" in capsys.readouterr().err
    )
    path.unlink()
    download.fetch(server.url, path, None)
    assert path.read_bytes() == CONTENT
    path.unlink()
    (tmp_path / "file.sha256").write_text("00\n")
    message = rf"SHA256 sum {SHA256}, not 00; it was removed: try again, or remove {path}.sha256, the sum of the first"
    with pytest.raises(RelossError, match=message):
        download.fetch(server.url, path, None)


def test_a_missing_server_and_an_unwritable_folder_are_reported(server, tmp_path):
    with pytest.raises(RelossError, match=r"cannot download http://127.0.0.1:9/file: .*refused"):
        download.fetch("http://127.0.0.1:9/file", tmp_path / "file", MD5)
    (tmp_path / "taken").write_text("")
    with pytest.raises(RelossError, match="cannot write"):
        download.fetch(server.url, tmp_path / "taken" / "file", MD5)


@pytest.mark.parametrize("states_length", [True, False])
def test_a_file_that_is_too_large_is_not_fetched(server, tmp_path, states_length):
    server.states_length = states_length
    with (tmp_path / "file").open("wb+") as out, pytest.raises(RelossError, match="is larger than 100000 bytes"):
        download.download_into(out, server.url, tmp_path / "file", limit=100_000)
    assert (tmp_path / "file").stat().st_size <= 100_000


def test_fetch_applies_the_limit(server, tmp_path):
    with pytest.raises(RelossError, match="is larger than 100000 bytes"):
        download.fetch(server.url, tmp_path / "file", MD5, limit=100_000)
    assert not (tmp_path / "file").exists()


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "archive.tgz"
    with tarfile.open(path, "w:gz") as opened:
        for name in ("folder/one", "folder/two", "../out"):
            member = tarfile.TarInfo(name)
            member.size = len(CONTENT)
            opened.addfile(member, io.BytesIO(CONTENT))
    return path


def test_only_the_requested_files_are_unpacked(archive, tmp_path):
    download.unpack(archive, {"folder/two": tmp_path / "new" / "two"})
    assert (tmp_path / "new" / "two").read_bytes() == CONTENT
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["archive.tgz", "new", "two"]


@pytest.mark.parametrize("fault", ["member missing", "truncated", "no archive"])
def test_the_error_names_an_archive_that_cannot_be_unpacked(archive, tmp_path, fault):
    if fault != "member missing":
        archive.write_bytes(archive.read_bytes()[:500] if fault == "truncated" else b"no archive")
    with pytest.raises(RelossError, match=rf"{archive} cannot be unpacked \(.*\); remove it and fetch again"):
        download.unpack(archive, {"folder/two": tmp_path / "two", "folder/three": tmp_path / "three"})
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize("member", ["../out", "a/../../out", "/etc/passwd"])
def test_an_archive_cannot_write_outside_its_folder(tmp_path, member):
    with pytest.raises(RelossError, match="would lie outside"):
        download.member_path(tmp_path, member)
    assert download.member_path(tmp_path, "a/../b") == tmp_path / "a/../b"
