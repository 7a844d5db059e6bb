import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from reloss import ClassificationReLoss
from reloss.learning import LearnOptions
from reloss.metrics import get_metric
from reloss.ranking import spearman
from reloss.runtime import download
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import short_hash
from reloss.surrogates import KINDS, SetReLoss, pretrained
from reloss.surrogates.pretrained import WEIGHTS, add_pretrained, cache_folder, model_card, pretrained_names

OPTIONS = {"input": "log_probability", "output": "identity", "width": 16, "scale": 1.75}


def losses(surrogate: ClassificationReLoss) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return surrogate.per_item(torch.randn(4, 8, 3, generator=generator), torch.zeros(4, 8, dtype=torch.long))


def refusal(path: Path, error: type[RelossError] = RelossError, **options) -> str:
    """Return the error message for `path`, after checking that it is one line and names the path."""
    with pytest.raises(error) as caught:
        ClassificationReLoss.from_pretrained(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_round_trip(tmp_path):
    surrogate = ClassificationReLoss(**OPTIONS)
    surrogate.save_pretrained(tmp_path / "s", {"metric": "accuracy"})
    loaded = ClassificationReLoss.from_pretrained(tmp_path / "s")
    assert loaded.options() == OPTIONS
    assert_close(losses(loaded), losses(surrogate), rtol=0, atol=0)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    card = json.loads((tmp_path / "s" / "surrogate.json").read_text())
    digest = hashlib.sha256((tmp_path / "s" / "surrogate.safetensors").read_bytes()).hexdigest()
    description = {"class": "ClassificationReLoss", "options": OPTIONS}
    hashes = {"sha256": digest, "options_hash": short_hash(description)}
    assert card == {**description, "metric": "accuracy", **hashes}


def test_flipped_bit_is_refused(tmp_path):
    ClassificationReLoss(**OPTIONS).save_pretrained(tmp_path)
    path = tmp_path / "surrogate.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(RelossError, match=r"surrogate\.safetensors is damaged: its checksum differs from the one in"):
        ClassificationReLoss.from_pretrained(tmp_path)


def test_changed_options_are_refused(tmp_path):
    ClassificationReLoss(output="monotone").save_pretrained(tmp_path)
    path = tmp_path / "surrogate.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps({**card, "options": {**card["options"], "output": "identity"}}))
    with pytest.raises(RelossError, match=r"surrogate\.json was changed: its options differ"):
        ClassificationReLoss.from_pretrained(tmp_path)
    del card["options_hash"]  # earlier versions wrote none
    path.write_text(json.dumps(card))
    assert ClassificationReLoss.from_pretrained(tmp_path).output == "monotone"


def test_saving_again_replaces(tmp_path):
    for _ in range(2):
        surrogate = ClassificationReLoss(**OPTIONS)
        surrogate.save_pretrained(tmp_path)
    assert_close(losses(ClassificationReLoss.from_pretrained(tmp_path)), losses(surrogate), rtol=0, atol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["surrogate.json", "surrogate.safetensors"]


def test_frozen_surrogate_passes_gradients_to_the_outputs(tmp_path):
    ClassificationReLoss(**OPTIONS).save_pretrained(tmp_path)
    outputs = torch.randn(8, 3, requires_grad=True)
    ClassificationReLoss.from_pretrained(tmp_path)(outputs, torch.zeros(8, dtype=torch.long)).backward()
    assert outputs.grad.abs().min() > 0


def test_released_weights_are_a_plain_state_dict(tmp_path):
    surrogate = ClassificationReLoss()
    torch.save(surrogate.state_dict(), tmp_path / "reloss_cls.ckpt")
    loaded = ClassificationReLoss.from_pretrained(tmp_path / "reloss_cls.ckpt")
    assert loaded.options() == {"input": "probability", "output": "absolute", "width": 128, "scale": 1.0}
    assert_close(losses(loaded), losses(surrogate), rtol=0, atol=0)


def test_options_are_for_files_and_not_for_folders(tmp_path):
    surrogate = ClassificationReLoss(**OPTIONS)
    surrogate.save_pretrained(tmp_path / "s")
    loaded = ClassificationReLoss.from_pretrained(tmp_path / "s" / "surrogate.safetensors", **OPTIONS)
    assert_close(losses(loaded), losses(surrogate), rtol=0, atol=0)
    assert "remove width" in refusal(tmp_path / "s", UsageError, width=16)


def test_missing_path_is_refused(tmp_path):
    assert "expected a folder with surrogate.json" in refusal(tmp_path / "absent", UsageError)
    assert "does not exist" in refusal(tmp_path)


class Code:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


def test_code_in_a_file_of_weights_is_refused_and_never_run(tmp_path):
    torch.save({"loss.2.bias": Code(tmp_path / "victim")}, tmp_path / "evil.ckpt")
    assert "not a file of tensors only" in refusal(tmp_path / "evil.ckpt")
    assert not (tmp_path / "victim").exists()


GARBAGE = {"empty": b"", "garbage": b"garbage " * 20, "page": b"<!DOCTYPE html>", "short": b".", "text": b"K" * 20}


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_file_without_weights_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert "cannot read weights" in refusal(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    ClassificationReLoss().save_pretrained(tmp_path)
    torch.save(ClassificationReLoss().state_dict(), tmp_path / "weights.ckpt")
    (tmp_path / "surrogate.safetensors").rename(tmp_path / "weights.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cannot read weights" in refusal(path)


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2]])
def test_file_that_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.ckpt")
    assert f"it holds a {type(content).__name__}" in refusal(tmp_path / "w.ckpt")


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"loss.2.bias": 3}, {1: torch.zeros(1)}])
def test_state_dict_of_other_values_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.ckpt")
    assert f"under {next(iter(content))!r} it holds a" in refusal(tmp_path / "w.ckpt")


def test_weights_of_another_size_are_refused(tmp_path):
    weights = ClassificationReLoss(width=16).state_dict()
    torch.save(weights, tmp_path / "narrow.ckpt")
    weights.pop("loss.2.bias")
    torch.save(weights, tmp_path / "short.ckpt")
    assert "size mismatch for logits_fcs.0.weight" in refusal(tmp_path / "narrow.ckpt")
    assert "Missing key" in refusal(tmp_path / "short.ckpt")


def test_folder_without_weights_is_refused(tmp_path):
    ClassificationReLoss().save_pretrained(tmp_path)
    (tmp_path / "surrogate.safetensors").unlink()
    assert "surrogate.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("card", "cause"),
    [
        ('{"class": "PoseReLoss", "options": {}}', "a PoseReLoss, not a ClassificationReLoss"),
        ('{"class": "ClassificationReLoss"}', "no class and options"),
        ("[]", "no class and options"),
        ('{"class": "ClassificationReLoss", "options": {"depth": 3}}', "'depth'"),
        ('{"class": "ClassificationReLoss", "options": {"input": "logits"}}', "logits"),
        ("{", "cannot be read as JSON"),
        *(
            (
                f'{{"class": "ClassificationReLoss", "options": {{"scale": {scale}}}}}',
                "scale must be a positive number, not ",
            )
            for scale in ("NaN", "Infinity", '"x"', "0", "-1", "true", "null")
        ),
        *(
            (
                f'{{"class": "ClassificationReLoss", "options": {{"width": {width}}}}}',
                "width must be a whole number of at ",
            )
            for width in ("-1", "0", "1.5", '"8"', "null")
        ),
    ],
)
def test_wrong_card_is_refused(tmp_path, card, cause):
    ClassificationReLoss().save_pretrained(tmp_path)
    (tmp_path / "surrogate.json").write_text(card)
    assert cause in refusal(tmp_path)


# Surrogates that ship with the package

SHIPPED = [name for name in pretrained_names() if not name.startswith("released/")]
CLASSES = {surrogate.__name__: surrogate for surrogate in KINDS.values()}


def shipped_card(name: str) -> dict[str, Any]:
    return json.loads((WEIGHTS / name / "surrogate.json").read_text())


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(download, "urlopen", urlopen)


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_surrogate_loads_frozen_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = shipped_card(name)
    surrogate = CLASSES[card["class"]].from_pretrained(name)
    assert surrogate.options() == card["options"]
    assert not surrogate.training
    assert not any(parameter.requires_grad for parameter in surrogate.parameters())


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_model_card_matches_its_json(name):
    folder, card = WEIGHTS / name, shipped_card(name)
    text = (folder / "README.md").read_text()
    assert text == model_card(name, card)
    get_metric(card["metric"])
    LearnOptions.model_validate(card["learn"])  # fields of this version alone
    shown = (f"{card['fit']['spearman']:.4f}", f"{card['fit']['spearman_synthetic']:.4f}", *card["about"]["commands"])
    assert all(part in text for part in shown)
    assert card["fit"]["spearman"] > 0.9
    assert not any(
        machine in text + json.dumps(card) for machine in ("/tmp", "/home", "/root", "/work", str(Path.cwd()))
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_surrogate_is_small_and_complete(name):
    files = {path.name: path.stat().st_size for path in (WEIGHTS / name).iterdir()}
    assert files.keys() == {"surrogate.safetensors", "surrogate.json", "README.md"}
    assert sum(files.values()) < 1_000_000


def test_shipped_surrogate_ranks_other_predictions(improving_bank):
    bank = improving_bank()
    outputs, targets = bank.items(torch.arange(len(bank)))
    losses = ClassificationReLoss.from_pretrained("classification/cifar10").per_item(outputs, targets)
    assert spearman(-losses, get_metric("accuracy")(outputs, targets)) > 0.95


def test_wheel_holds_every_shipped_file(tmp_path):
    root = Path(__file__).parents[2]
    for part in ("common", "tasks"):
        shutil.copytree(root / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for part in ("pyproject.toml", "README.md"):
        shutil.copy(root / part, tmp_path)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, ".")
    done = subprocess.run(pip, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    folder = "reloss/surrogates/weights"
    files = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(folder)}
    shipped = [path.relative_to(WEIGHTS).as_posix() for path in WEIGHTS.rglob("*") if path.is_file()]
    assert files == {f"{folder}/{path}" for path in shipped}
    assert len(files) == 3 * len(SHIPPED) > 0


def test_names():
    released = ["released/cls", "released/nat", "released/pose_256x192", "released/pose_384x288"]
    assert pretrained_names() == [*SHIPPED, *released]
    assert "classification/cifar10" in SHIPPED


def test_existing_path_has_priority_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ClassificationReLoss(**OPTIONS).save_pretrained("classification/cifar10")
    assert ClassificationReLoss.from_pretrained("classification/cifar10").options() == OPTIONS


def test_unknown_name_is_refused():
    message = refusal(Path("clasification/cifar10"), UsageError)
    assert ", ".join(pretrained_names()) in message
    assert message.endswith("; did you mean classification/cifar10?")
    assert "did you mean" not in refusal(Path("qqqq"), UsageError)


@pytest.mark.parametrize(
    ("surrogate_class", "name", "named_class"),
    [
        (SetReLoss, "classification/cifar10", "ClassificationReLoss"),
        (SetReLoss, "released/cls", "ClassificationReLoss"),
        (ClassificationReLoss, "released/pose_256x192", "PoseReLoss"),
        (ClassificationReLoss, "released/pose_384x288", "PoseReLoss"),
        (ClassificationReLoss, "released/nat", "TranslationReLoss"),
    ],
)
@pytest.mark.usefixtures("unreachable")
def test_name_for_another_class_is_refused(surrogate_class, name, named_class):
    with pytest.raises(UsageError, match=f"^{name} is for {named_class}, not for {surrogate_class.__name__}$"):
        surrogate_class.from_pretrained(name)


ABOUT = {"data": "synthetic", "commands": ["reloss learn"], "good_for": "tests", "not_good_for": "much"}


def test_adding_to_the_package(cli, improving_bank, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path / "weights")
    for out, seed in (("first", 0), ("second", 1)):
        sets = ("--set", "steps=4", "items=8", f"seed={seed}")
        cli("learn", "--bank", improving_bank(name=out).path, "--metric", "accuracy", "--out", tmp_path / out, *sets)
    with pytest.raises(UsageError, match="holds no some/name yet"):
        add_pretrained("some/name", tmp_path / "first")
    assert "some/name" not in pretrained_names()
    add_pretrained("some/name", tmp_path / "first", ABOUT)
    assert "some/name" in pretrained_names()
    add_pretrained("some/name", tmp_path / "second")  # keeps `about` of the first
    card = json.loads((tmp_path / "weights" / "some" / "name" / "surrogate.json").read_text())
    assert card == {**json.loads((tmp_path / "second" / "surrogate.json").read_text()), "about": ABOUT}
    text = (tmp_path / "weights" / "some" / "name" / "README.md").read_text()
    for part in (f"{card['fit']['spearman']:.4f}", card["bank"], "24, which is 20%", "**Not good for:** much"):
        assert part in text
    first, second, added = (
        losses(ClassificationReLoss.from_pretrained(where))
        for where in (tmp_path / "first", tmp_path / "second", "some/name")
    )
    assert_close(added, second, rtol=0, atol=0)
    assert (added - first).abs().max() > 1e-3


# The authors' weights, downloaded


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
    surrogate = ClassificationReLoss()
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
    surrogate = ClassificationReLoss()
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
    content = release.files["reloss_cls.ckpt"] = saved(ClassificationReLoss().state_dict())
    release.keep = keep
    missing = len(content) - round(keep * len(content))
    assert f"the connection ended {missing} bytes too early; try again" in failed_download(release, tmp_path)
    assert cached() == []
    release.keep = 1.0
    ClassificationReLoss.from_pretrained("released/cls")
    assert cached() == ["reloss_cls.ckpt"]


def test_download_of_anything_but_tensors_is_discarded(release, cached, tmp_path):
    good = saved(ClassificationReLoss().state_dict())
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
    release.files["reloss_cls.ckpt"] = saved(ClassificationReLoss().state_dict())
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
