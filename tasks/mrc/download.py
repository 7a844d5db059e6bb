"""Downloads of the data sets whose files are open."""

from __future__ import annotations

from pathlib import Path

from reloss.runtime import download
from reloss.runtime.errors import UsageError
from reloss_tasks.mrc.config import Data

SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
CMRC = "https://raw.githubusercontent.com/ymcui/cmrc2018/master/squad-style-data/cmrc2018"
DRCD = "https://raw.githubusercontent.com/DRCKnowledgeTeam/DRCD/master"
# Where each file of a data set's folder comes from, and its checksum: SQuAD v1.1's as ParlAI states them
# (parlai/tasks/squad/build.py), v2.0's as quantapix/qnarre does. None is stated for CMRC 2018 and DRCD.
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
# DuReader-robust comes as one archive; the sum is PaddleNLP's of this address.
DUREADER = ("https://bj.bcebos.com/paddlenlp/datasets/dureader_robust-data.tar.gz", "82f3d191a115ec17808856866787606e")


def fetch(config: Data, root: Path) -> None:
    """Download the experiment's files into ROOT/<folder>, verified where a checksum is known; what is there stays.

    Raises:
        UsageError: a file is not one of the data set's own.
        RelossError: it cannot be downloaded; the same call goes on from there.
    """
    folder = root / config.folder
    wanted = [file for file in (config.train_file, config.test_file) if file is not None]
    if config.name == "dureader_robust":
        _fetch_dureader(folder, wanted)
        return
    for file in wanted:
        if file not in FILES[config.folder]:
            raise UsageError(f"{file} is none of {config.folder}'s files: {', '.join(FILES[config.folder])}")
        url, checksum = FILES[config.folder][file]
        download.fetch(url, folder / file, checksum)


def _fetch_dureader(folder: Path, wanted: list[str]) -> None:
    missing = [file for file in wanted if not (folder / file).exists()]
    if not missing:
        return
    url, checksum = DUREADER
    archive = folder / Path(url).name
    download.fetch(url, archive, checksum)
    download.unpack(archive, {f"dureader_robust-data/{file}": folder / file for file in missing})
    archive.unlink()
