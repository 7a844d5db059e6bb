"""The authors' weights are downloaded once, checked and cached."""

import io
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from surrogate_files import GARBAGE, Code, losses
from torch.testing import assert_close

from reloss import ClassificationReLoss
from reloss.runtime import download
from reloss.runtime.errors import RelossError
from reloss.surrogates import pretrained
from reloss.surrogates.options import PRESETS
from reloss.surrogates.pretrained import cache_folder


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class Release:
    """A local server in place of the authors'. `files` is its content; `keep` is the share of each file it sends."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.keep = 1.0
        self.requests: list[str] = []
        release = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                release.requests.append(self.path)
                content = release.files.get(self.path.rpartition("/")[2])
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: round(release.keep * len(content))])

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Release]:
    server = Release()
    monkeypatch.setattr(pretrained, "RELEASE", server.url)
    monkeypatch.setenv("RELOSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    yield server
    server.close()


@pytest.fixture
def cached(tmp_path: Path) -> Callable[[], list[str]]:
    """Return a function that lists the cache, hidden files included."""
    return lambda: sorted(path.name for path in (tmp_path / "cache").glob("*"))


def test_released_weights_are_downloaded_once(release, cached, capsys):
    surrogate = ClassificationReLoss(**PRESETS["released"])
    release.files["reloss_cls.ckpt"] = saved(surrogate.state_dict())
    assert len(release.files["reloss_cls.ckpt"]) > 2 * download.CHUNK
    for loads in (1, 2):
        loaded = ClassificationReLoss.from_pretrained("released/cls")
        assert loaded.options() == {"input": "probability", "output": "absolute", "width": 128, "scale": 1.0}
        assert_close(losses(loaded), losses(surrogate), rtol=0, atol=0)
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        assert release.requests == ["/v1/reloss_cls.ckpt"], loads
    assert cached() == ["reloss_cls.ckpt"]
    assert capsys.readouterr().err.count(f"downloading {release.url}/reloss_cls.ckpt to ") == 1


@pytest.mark.parametrize("name", sorted(pretrained.RELEASED))
def test_file_of_each_released_name(release, cached, name):
    file = {
        "released/cls": "reloss_cls.ckpt",
        "released/pose_256x192": "reloss_pose_256x192.ckpt",
        "released/pose_384x288": "reloss_pose_384x288.ckpt",
        "released/nat": "reloss_nat.ckpt",
    }[name]
    release.files[file] = saved({"loss.bias": torch.ones(2)})
    kind, options = pretrained.RELEASED[name]
    path, released_options = pretrained.find_pretrained(name, kind)
    assert released_options == options
    assert path.read_bytes() == release.files[file]
    assert cached() == [file]


def test_address_of_the_release():
    assert pretrained.RELEASE == "https://github.com/hunto/ReLoss/releases/download/v1.0.0"


def test_manually_downloaded_weights_need_no_network(release, tmp_path):
    (tmp_path / "cache").mkdir()
    surrogate = ClassificationReLoss(**PRESETS["released"])
    torch.save(surrogate.state_dict(), tmp_path / "cache" / "reloss_cls.ckpt")
    assert_close(losses(ClassificationReLoss.from_pretrained("released/cls")), losses(surrogate), rtol=0, atol=0)
    assert release.requests == []


def failed_download(release: Release, tmp_path: Path) -> str:
    """Return the error message of a failed download: one line with the address, and where to put the file instead."""
    with pytest.raises(RelossError) as caught:
        ClassificationReLoss.from_pretrained("released/cls")
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert f"{release.url}/reloss_cls.ckpt: " in message
    assert message.endswith(f" at {tmp_path / 'cache' / 'reloss_cls.ckpt'}")
    assert "\n" not in message
    return message


def test_missing_file_on_the_server(release, cached, tmp_path):
    assert ": HTTP Error 404: Not Found; try again, or download it elsewhere" in failed_download(release, tmp_path)
    assert cached() == []


def test_unreachable_server(release, cached, tmp_path):
    release.close()
    assert "Connection refused; try again" in failed_download(release, tmp_path)
    assert cached() == []


def test_server_that_does_not_answer(release, cached, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        release.url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(pretrained, "RELEASE", release.url)
        monkeypatch.setattr(download, "TIMEOUT", 0.1)
        assert "timed out; try again" in failed_download(release, tmp_path)
    assert cached() == []


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_server_that_hangs_up(release, cached, tmp_path, keep):
    content = release.files["reloss_cls.ckpt"] = saved(ClassificationReLoss(**PRESETS["released"]).state_dict())
    release.keep = keep
    missing = len(content) - round(keep * len(content))
    assert f"the connection ended {missing} bytes too early; try again" in failed_download(release, tmp_path)
    assert cached() == []
    release.keep = 1.0
    ClassificationReLoss.from_pretrained("released/cls")
    assert cached() == ["reloss_cls.ckpt"]


def test_download_of_anything_but_tensors_is_discarded(release, cached, tmp_path):
    good = saved(ClassificationReLoss(**PRESETS["released"]).state_dict())
    bad = {
        "it is not a file of tensors only": [*GARBAGE.values(), saved({"loss.2.bias": Code(tmp_path / "victim")})],
        "PytorchStreamReader": [good[:-1000]],
        "it holds a list, not a state dict": [saved([1, 2])],
        "under 'epoch' it holds a int, not a tensor": [saved({"epoch": 3})],
    }
    for cause, contents in bad.items():
        for content in contents:
            release.files["reloss_cls.ckpt"] = content
            message = failed_download(release, tmp_path)
            assert cause in message
            assert "; the file was discarded: try again, or put a good one at " in message
            assert cached() == []
    assert not (tmp_path / "victim").exists()


def test_unwritable_cache(release, tmp_path, monkeypatch):
    release.files["reloss_cls.ckpt"] = saved(ClassificationReLoss(**PRESETS["released"]).state_dict())
    (tmp_path / "file").touch()
    monkeypatch.setenv("RELOSS_CACHE", str(tmp_path / "file"))
    with pytest.raises(RelossError, match=f"cannot write {tmp_path}/file/reloss_cls.ckpt"):
        ClassificationReLoss.from_pretrained("released/cls")


def test_location_of_the_cache(monkeypatch):
    for name in ("RELOSS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/a/home")
    assert cache_folder() == Path("/a/home/.cache/reloss")
    monkeypatch.setenv("XDG_CACHE_HOME", "/a/cache")
    assert cache_folder() == Path("/a/cache/reloss")
    monkeypatch.setenv("RELOSS_CACHE", "/its/own")
    assert cache_folder() == Path("/its/own")
