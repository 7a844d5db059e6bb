import json

import pytest
import torch
from recordings import record_items
from safetensors.torch import load_file, save_file

from reloss.learning import PredictionBank
from reloss.runtime.errors import RelossError


def test_the_error_names_a_damaged_shard(tmp_path):
    bank = PredictionBank.create(tmp_path, item_size=4)
    record_items(bank, range(10))
    bank.finish()
    (shard,) = (tmp_path / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(RelossError, match=f"bank shard {shard} cannot be read"):
        len(PredictionBank.open(tmp_path))


def test_a_missing_shard_is_detected(three_shards):
    bank, opened = three_shards.path, PredictionBank.open(three_shards.path)
    assert len(opened) == opened.meta["items"] == 3
    sorted((bank / "shards").iterdir())[1].unlink()
    message = (
        f"bank {bank} has 2 of its 3 items: shards are missing in {bank / 'shards'}; restore .*, or remove {bank} to"
    )
    for read in (PredictionBank.open, lambda path: opened.verify()):
        opened._shards.refresh()
        with pytest.raises(RelossError, match=message):
            read(bank)
    meta = {name: value for name, value in three_shards.meta.items() if name != "items"}
    (bank / "bank.json").write_text(json.dumps(meta))  # like a bank of an earlier version
    assert len(PredictionBank.open(bank)) == 2


def test_other_files_are_ignored_and_an_unreadable_folder_is_reported(three_shards):
    shards = three_shards.path / "shards"
    (shards / "note.safetensors").write_text("mine")
    assert len(PredictionBank.open(three_shards.path)) == 3
    shards.rename(three_shards.path / "elsewhere")
    shards.write_text("")
    with pytest.raises(RelossError, match=f"the bank's folder {shards} cannot be read .Not a directory.; make it"):
        PredictionBank.open(three_shards.path)


@pytest.mark.parametrize(
    "change",
    [
        lambda shard: {"outputs": shard["outputs"][..., :2].contiguous()},
        lambda shard: {"targets": shard["targets"].half()},
        lambda shard: {"targets": torch.cat([shard["targets"]] * 2)},
    ],
)
def test_the_error_names_a_shard_with_another_layout(three_shards, change):
    shard = sorted((three_shards.path / "shards").iterdir())[1]
    content = load_file(shard)
    save_file({**content, **change(content)}, shard)
    with pytest.raises(
        RelossError, match=f"bank shard {shard} does not match the other shards; restore it from a copy"
    ):
        PredictionBank.open(three_shards.path)


def test_the_error_names_a_shard_with_a_flipped_bit(improving_bank):
    bank = improving_bank(steps=4)
    bank.verify()
    (shard,) = (bank.path / "shards").iterdir()
    content = bytearray(shard.read_bytes())
    content[-1000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(RelossError, match=f"bank shard {shard} is damaged: its checksum does not match; restore it"):
        PredictionBank.open(bank.path).verify()


def test_a_bank_is_verified_while_a_writer_thins_it(tmp_path):
    bank = PredictionBank.create(tmp_path, item_size=4)
    record_items(bank, range(40))
    bank.flush()
    reader = PredictionBank.open(tmp_path)
    assert len(reader) == 40
    bank._raise_level()  # replaces the shard that the reader has mapped
    assert 0 < len(bank) < 40
    reader.verify()
    PredictionBank.open(tmp_path).verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shard: {"targets": shard["targets"] + 1}, "holds other items than those that were recorded"),
        (lambda shard: {"outputs": shard["outputs"].float()}, "holds other items than those that were recorded"),
        (lambda shard: {"outputs": shard["outputs"].double()}, "holds other tensors than items"),
        (lambda shard: {"keys": shard["keys"].float()}, "holds other tensors than items"),
        (lambda shard: {"steps": shard["steps"][:, None]}, "holds other tensors than items"),
    ],
)
def test_a_shard_that_was_written_by_other_code_is_refused(tmp_path, change, message):
    bank = PredictionBank.create(tmp_path, item_size=4)
    record_items(bank, range(10))
    bank.finish()
    (shard,) = (tmp_path / "shards").iterdir()
    content = load_file(shard)
    save_file({**content, **change(content)}, shard)  # without a checksum
    with pytest.raises(RelossError, match=message):
        PredictionBank.open(tmp_path).verify()
