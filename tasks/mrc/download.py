"""Addresses and checksums of the data sets that can be downloaded freely."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reloss.runtime import download
from reloss.runtime.errors import UsageError

SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
CMRC = "https://raw.githubusercontent.com/ymcui/cmrc2018/master/squad-style-data/cmrc2018"
DRCD = "https://raw.githubusercontent.com/DRCKnowledgeTeam/DRCD/master"
# Address and SHA256 of the files in each folder. Sources of the checksums: ParlAI (parlai/tasks/squad/build.py) for
# SQuAD v1.1, quantapix/qnarre for v2.0. No source states any for CMRC 2018 and DRCD.
FILES: dict[str, dict[str, tuple[str, str | None]]] = {
    "squad": {
        "train-v1.1.json": (
            f"{SQUAD}/train-v1.1.json",
            "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
        ),
        "dev-v1.1.json": (
            f"{SQUAD}/dev-v1.1.json",
            "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
        ),
        "train-v2.0.json": (
            f"{SQUAD}/train-v2.0.json",
            "68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002",
        ),
        "dev-v2.0.json": (
            f"{SQUAD}/dev-v2.0.json",
            "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
        ),
    },
    "cmrc2018": {f"{name}.json": (f"{CMRC}_{name}.json", None) for name in ("train", "dev", "trial")},
    "drcd": {file: (f"{DRCD}/{file}", None) for file in ("DRCD_training.json", "DRCD_dev.json")},
}
# DuReader-robust is one archive; the checksum is PaddleNLP's.
DUREADER = ("https://bj.bcebos.com/paddlenlp/datasets/dureader_robust-data.tar.gz", "82f3d191a115ec17808856866787606e")


def fetch_files(name: str, folder: Path, files: Sequence[str]) -> None:
    """Download files of a data set into its folder. Existing files are kept.

    Args:
        name: name of the data set.
        folder: folder of the data set; its name is a key of `FILES`, except for DuReader-robust.
        files: names of the files.

    Raises:
        UsageError: the data set has no such file.
        RelossError: a file cannot be downloaded; running the command again resumes.
    """
    if name == "dureader_robust":
        _fetch_dureader(folder, files)
        return
    for file in files:
        if file not in FILES[folder.name]:
            raise UsageError(f"{folder.name} has no file {file}, only {', '.join(FILES[folder.name])}")
        url, checksum = FILES[folder.name][file]
        download.fetch(url, folder / file, checksum)


def _fetch_dureader(folder: Path, files: Sequence[str]) -> None:
    missing = [file for file in files if not (folder / file).exists()]
    if not missing:
        return
    url, checksum = DUREADER
    archive = folder / Path(url).name
    download.fetch(url, archive, checksum)
    download.unpack(archive, {f"dureader_robust-data/{file}": folder / file for file in missing})
    archive.unlink()
