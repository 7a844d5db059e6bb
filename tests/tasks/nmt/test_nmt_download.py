import io
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from zipfile import ZipFile

import pytest

from reloss.runtime.errors import RelossError
from reloss_tasks.nmt import download

SGM = '<srcset><doc><p>\n<seg id="1">{} &amp; co</seg>\n<seg id="2"> two\n lines </seg></p></doc></srcset>'
TEXTS = {
    "europarl-v8.ro-en.en": "one\n\nthree\n",
    "europarl-v8.ro-en.ro": "unu\ndoi\ntrei\n",
    "SETIMES.en-ro.en": "four\n",
    "SETIMES.en-ro.ro": "patru\n",
    **{name: SGM.format(name[-6:-4]) for split in ("valid", "test") for name in download.PARTS[split][0][1].values()},
}


class Handler(SimpleHTTPRequestHandler):
    requests: list[str] = []  # noqa: RUF012

    def do_GET(self):
        self.requests.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with small archives in WMT's layout; yields its folder and the list of requests."""
    folder = tmp_path / "server"
    folder.mkdir()
    for split in download.PARTS.values():
        for archive, members in split:
            pack(folder / archive, {name: TEXTS[name] for name in members.values()})
    Handler.requests = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    addresses = {name: f"http://127.0.0.1:{server.server_port}/{name}" for name in download.ADDRESSES}
    monkeypatch.setattr(download, "ADDRESSES", addresses)
    yield folder, Handler.requests
    server.shutdown()
    server.server_close()


def pack(path, texts):
    if path.suffix == ".zip":
        with ZipFile(path, "w") as archive:
            for name, text in texts.items():
                archive.writestr(name, text)
        return
    with tarfile.open(path, "w:gz") as archive:
        for name, text in texts.items():
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))


def test_texts_are_downloaded_once(server, tmp_path, cli):
    words = ("data", "fetch", "wmt16_en_ro", "--data", tmp_path)
    code, out, err = cli(*words)
    assert code == 0, err
    assert "en-ro sentence pairs: 3 train, 2 valid, 2 test" in out
    assert err.count("no source states a checksum") == 4
    root = tmp_path / "wmt16_en_ro"
    assert (root / "train.en").read_text() == "one\nthree\nfour\n"
    assert (root / "train.ro").read_text() == "unu\ntrei\npatru\n"
    assert (root / "test.ro").read_text() == "ro & co\ntwo lines\n"
    assert not list(root.glob("*gz"))
    assert len(server[1]) == 4
    assert cli(*words)[0] == 0
    assert len(server[1]) == 4
    (root / "test.en").unlink()
    assert cli(*words)[0] == 0
    assert server[1][4:] == ["/test.tgz"]


def test_a_file_that_differs_from_the_first_download_is_refused(server, tmp_path, cli):
    words = ("data", "fetch", "wmt16_en_ro", "--data", tmp_path)
    assert cli(*words)[0] == 0
    (tmp_path / "wmt16_en_ro" / "test.en").unlink()
    pack(server[0] / "test.tgz", {"other": "text"})
    code, _, err = cli(*words)
    assert code == 1
    assert "test.tgz has the SHA256 sum" in err


def test_a_damaged_first_download_is_removed_and_downloaded_again(server, tmp_path, cli):
    words = ("data", "fetch", "wmt16_en_ro", "--data", tmp_path)
    good = (server[0] / "dev.tgz").read_bytes()
    (server[0] / "dev.tgz").write_bytes(b"<html>come back later</html>")
    code, _, err = cli(*words)
    assert code == 1
    assert "dev.tgz lacks newsdev2016-enro-src.en.sgm, or is damaged" in err
    assert "the archive was removed: run the command again" in err
    assert not list((tmp_path / "wmt16_en_ro").glob("dev.tgz*"))
    (server[0] / "dev.tgz").write_bytes(good)
    code, out, err = cli(*words)
    assert code == 0, err
    assert "2 valid" in out


def test_a_damaged_file_does_not_remove_the_checksum_of_an_intact_one(server, tmp_path, cli):
    words = ("data", "fetch", "wmt16_en_ro", "--data", tmp_path)
    assert cli(*words)[0] == 0
    root = tmp_path / "wmt16_en_ro"
    kept = (root / "test.tgz.sha256").read_text()
    (root / "test.en").unlink()
    (root / "test.tgz").write_bytes(b"put here by hand")
    assert cli(*words)[0] == 1
    assert (root / "test.tgz.sha256").read_text() == kept
    assert cli(*words)[0] == 0


def test_an_archive_that_lacks_files_is_named(tmp_path):
    pack(tmp_path / "dev.tgz", {"other": "text"})
    with pytest.raises(RelossError, match=r"dev.tgz lacks news.sgm, or is damaged"):
        download._reader(tmp_path / "dev.tgz")("news.sgm")


def test_other_texts_cannot_be_downloaded(tmp_path, cli):
    code, _, err = cli("data", "fetch", "multi30k", "--data", tmp_path)
    assert code == 2
    assert "multi30k cannot be downloaded; put its texts at" in err
