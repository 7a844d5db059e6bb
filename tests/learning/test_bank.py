import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from reloss.learning import PredictionBank
from reloss.learning.bank import compact
from reloss.runtime.errors import RelossError

ITEM_BYTES = 4 * 3 * 2 + 4 * 8 + 8 + 8  # of record_items: outputs, targets, step, key


def item(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Item number `index` of a recording: 4 examples of 3 outputs, told apart by their content."""
    outputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(index))
    return outputs, torch.arange(4) + 10 * index


def record_items(bank: PredictionBank, indices: range) -> None:
    for index in indices:
        bank.append(*item(index), step=index)


def contents(bank: PredictionBank) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return *bank.items(torch.arange(len(bank))), bank.steps()


def assert_same(one: PredictionBank, other: PredictionBank) -> None:
    for ours, theirs in zip(contents(one), contents(other), strict=True):
        assert_close(ours, theirs, rtol=0, atol=0)


def bytes_on_disk(bank: PredictionBank) -> int:
    return sum(path.stat().st_size for path in (bank.path / "shards").iterdir())


def test_round_trip_in_float16(tmp_path):
    bank = PredictionBank.create(tmp_path, item_size=4, origin={"task": "digits"})
    record_items(bank, range(5))
    bank.finish()
    reopened = PredictionBank.open(tmp_path)
    outputs, targets = reopened.items(torch.tensor([3, 0, 3]))
    assert outputs.dtype == torch.float32
    assert targets.dtype == torch.int64
    for row, index in enumerate((3, 0, 3)):
        assert_close(outputs[row], item(index)[0].half().float(), rtol=0, atol=0)
        assert torch.equal(targets[row], item(index)[1])
    assert len(reopened) == 5
    assert reopened.steps().tolist() == [0, 1, 2, 3, 4]
    assert reopened.meta["complete"] is True
    assert reopened.meta["origin"] == {"task": "digits"}


def test_outputs_are_clamped_to_float16(tmp_path):
    bank = PredictionBank.create(tmp_path, item_size=2)
    bank.append(torch.tensor([[1e6, -1e6], [float("inf"), 0.5]]), torch.tensor([0.25, 1e9]), step=0)
    bank.flush()
    outputs, targets = bank.items(torch.tensor([0]))
    assert outputs.tolist() == [[[65504, -65504], [65504, 0.5]]]
    assert compact(torch.tensor([1e30, -1e30], dtype=torch.bfloat16)).tolist() == [65504, -65504]
    assert targets.tolist() == [[0.25, 65504]]


def test_items_are_consecutive_examples_whatever_the_batches(tmp_path):
    bank = PredictionBank.create(tmp_path, item_size=4)
    examples = torch.arange(26.0)
    for step, batch in enumerate(examples.split([3, 1, 10, 2, 2, 8])):
        bank.append(batch[:, None], batch.long(), step)
    bank.flush()
    outputs, targets = bank.items(torch.arange(len(bank)))
    assert_close(outputs.flatten(), examples[:24], rtol=0, atol=0)
    assert targets.flatten().tolist() == list(range(24))
    assert bank.steps().tolist() == [1, 2, 2, 3, 5, 5]  # the step of an item's last example


def test_the_rest_of_an_item_is_dropped_at_a_flush(tmp_path):
    bank = PredictionBank.create(tmp_path, item_size=4)
    bank.append(torch.zeros(3, 1), torch.zeros(3), step=0)
    bank.flush()
    bank.append(torch.ones(4, 1), torch.ones(4), step=1)
    bank.flush()
    assert bank.items(torch.tensor([0]))[0].unique().tolist() == [1]
    assert len(bank) == 1


def test_an_empty_bank(tmp_path):
    bank = PredictionBank.create(tmp_path)
    bank.flush()
    assert len(bank) == 0
    assert bank.steps().tolist() == []


@pytest.mark.parametrize("flush_every", [37, 10**9])
def test_the_budget_holds_and_is_used(tmp_path, flush_every):
    """Beside the items a shard holds a header of some 400 bytes."""
    bank = PredictionBank.create(tmp_path, item_size=4, max_bytes=200 * ITEM_BYTES)
    largest = 0
    for index in range(3000):
        record_items(bank, range(index, index + 1))
        if index % flush_every == 0:
            bank.flush()
        if index % 100 == 0:
            largest = max(largest, len(bank))
    bank.finish()
    assert largest <= 200
    assert 70 <= len(bank) <= 200
    assert bytes_on_disk(bank) <= 200 * ITEM_BYTES + 500 * len(list((tmp_path / "shards").iterdir()))


def test_the_sample_is_uniform_over_the_recording(tmp_path):
    """Chi-square with 9 degrees of freedom: its 99.9 % quantile is 27.9; a kept prefix or suffix gives thousands."""
    bank = PredictionBank.create(tmp_path, item_size=1, max_bytes=1000 * (2 + 8 + 8 + 8))
    total = 20_000
    bank.append(torch.arange(total)[:, None] % 7 / 7, torch.arange(total), step=0)
    bank.finish()
    kept = bank.items(torch.arange(len(bank)))[1].flatten()
    tenths = torch.bincount(kept * 10 // total, minlength=10).double()
    expected = len(bank) / 10
    assert 400 <= len(bank) <= 1000
    assert float(((tenths - expected) ** 2 / expected).sum()) < 27.9
    assert torch.equal(kept, kept.unique())


def test_the_seed_decides_what_stays(tmp_path):
    held = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        bank = PredictionBank.create(tmp_path / name, item_size=4, max_bytes=50 * ITEM_BYTES, seed=seed)
        record_items(bank, range(300))
        bank.finish()
        held.append((bank.steps().tolist(), bank.fingerprint()))
    assert held[0] == held[1]
    assert held[0][0] != held[2][0]
    assert held[0][1] != held[2][1]


def test_reading_while_recording_goes_on(tmp_path):
    bank = PredictionBank.create(tmp_path, item_size=4, max_bytes=40 * ITEM_BYTES)
    record_items(bank, range(30))
    bank.flush()
    reader = PredictionBank.open(tmp_path)
    before = contents(reader)
    record_items(bank, range(30, 500))  # thins out what the reader has mapped
    bank.flush()
    assert before[2].tolist() == list(range(30))
    for ours, again in zip(before, contents(reader), strict=True):
        assert_close(ours, again, rtol=0, atol=0)
    assert_same(PredictionBank.open(tmp_path), bank)


def test_reading_in_the_middle_of_thinning(tmp_path):
    """A reader may find, at any moment, whole shards only, though files come and go under it."""
    PredictionBank.create(tmp_path, item_size=4, max_bytes=40 * ITEM_BYTES)
    recorder = start(record_in_child, tmp_path, 1500)
    reads = 0
    while recorder.is_alive():
        bank = PredictionBank.open(tmp_path)
        if len(bank):
            _, targets = bank.items(torch.arange(len(bank)))
            assert torch.equal(targets[:, 0], 10 * bank.steps())
            reads += 1
    recorder.join()
    assert recorder.exitcode == 0
    assert reads > 5


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_recording_goes_on_as_if_nothing_happened(tmp_path, seed):
    total, chance = 700, random.Random(seed)
    budget = {"item_size": 4, "max_bytes": 60 * ITEM_BYTES}
    whole = PredictionBank.create(tmp_path / "whole", **budget)
    record_items(whole, range(total))
    whole.finish()

    killed = PredictionBank.create(tmp_path / "killed", **budget).path
    recorder = start(record_in_child, killed, 10**6)
    target = chance.randrange(20, 500)
    while recorder.is_alive() and saved_step(killed) < target:
        time.sleep(0.001)
    time.sleep(chance.random() / 100)
    os.kill(recorder.pid, signal.SIGKILL)
    recorder.join()

    bank, flushed = PredictionBank.open(killed), saved_step(killed)
    outputs, targets, steps = contents(bank)
    for row, index in enumerate(steps.tolist()):
        assert_close(outputs[row], item(index)[0].half().float(), rtol=0, atol=0)
        assert torch.equal(targets[row], item(index)[1])
    bank.resume(flushed)
    assert int(bank.steps().max()) < flushed
    record_items(bank, range(flushed, max(total, flushed)))
    bank.finish()
    record_items(whole, range(total, flushed))  # if the child had gone further than the whole recording
    whole.finish()
    assert_same(bank, whole)
    assert bank.fingerprint() == whole.fingerprint()


def record_in_child(path: Path, total: int) -> None:
    bank = PredictionBank.open(path)
    for index in range(total):
        record_items(bank, range(index, index + 1))
        if index % 7 == 6:
            bank.flush()
            (path / "step.tmp").write_text(str(index + 1))
            (path / "step.tmp").rename(path / "step")


def saved_step(path: Path) -> int:
    return int((path / "step").read_text()) if (path / "step").exists() else 0


def start(function, *arguments) -> multiprocessing.Process:
    """Run in a child that is forked, since a fresh interpreter takes seconds to import torch."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def test_resume_forgets_that_step_and_what_came_after(tmp_path):
    bank = PredictionBank.create(tmp_path, item_size=4)
    record_items(bank, range(10))
    bank.flush()
    record_items(bank, range(10, 15))
    bank.flush()
    again = PredictionBank.open(tmp_path)
    again.resume(10)
    assert again.steps().tolist() == list(range(10))
    record_items(again, range(10, 12))
    again.flush()
    assert PredictionBank.open(tmp_path).steps().tolist() == list(range(12))


def test_a_kill_between_raising_the_level_and_thinning(tmp_path, monkeypatch):
    budget = {"item_size": 4, "max_bytes": 20 * ITEM_BYTES}
    whole, killed = (PredictionBank.create(tmp_path / name, **budget) for name in ("whole", "killed"))
    record_items(whole, range(100))
    whole.finish()

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PredictionBank, "_drop", kill)
        with pytest.raises(KeyboardInterrupt):
            record_items(killed, range(100))
    again = PredictionBank.open(killed.path)
    assert (len(again), again.meta["level"]) == (21, 1)
    again.resume(21)
    assert 0 < len(again) < 20
    record_items(again, range(21, 100))
    again.finish()
    assert_same(again, whole)


def record_share(path: Path, writer: int, writers: int, steps: range) -> None:
    """Record, as one of some processes, item `writer` of each step; items are told apart by step and writer."""
    bank = PredictionBank.open(path, writer=writer, writers=writers)
    bank.resume(steps.start)
    for step in steps:
        bank.append(*item(step * 10 + writer), step=step)
        if step % 7 == 6:
            bank.flush()
    bank.flush()


def finish(path: Path) -> PredictionBank:
    PredictionBank.open(path).finish()
    return PredictionBank.open(path)


def test_several_processes_record_at_once(tmp_path):
    """What they leave is what they leave one after the other: whole, within the budget, a sample of all of them."""
    budget = {"item_size": 4, "max_bytes": 60 * ITEM_BYTES}
    beside, after = (PredictionBank.create(tmp_path / name, **budget).path for name in ("beside", "after"))
    recorders = [start(record_share, beside, writer, 3, range(300)) for writer in range(3)]
    for writer in range(3):
        recorders[writer].join()
        record_share(after, writer, 3, range(300))
    assert [recorder.exitcode for recorder in recorders] == [0, 0, 0]
    one, other = finish(beside), finish(after)
    assert_same(one, other)
    assert one.fingerprint() == other.fingerprint()
    assert sorted(path.name for path in beside.iterdir()) == ["bank.json", "shards"]
    outputs, targets, steps = contents(one)
    writers = targets[:, 0] // 10 - steps * 10
    assert 15 <= len(one) <= 60
    assert writers.unique().tolist() == [0, 1, 2]
    for row, (step, writer) in enumerate(zip(steps.tolist(), writers.tolist(), strict=True)):
        assert_close(outputs[row], item(step * 10 + writer)[0].half().float(), rtol=0, atol=0)


def test_the_sample_of_several_processes_is_uniform_though_one_recorded_more(tmp_path):
    """Writer 0 offers four times as many items as writer 1, so it comes to a higher level, and both end at that."""
    path = PredictionBank.create(tmp_path, item_size=1, max_bytes=1000 * (2 + 8 + 8 + 8)).path
    banks = [PredictionBank.open(path, writer=writer, writers=2) for writer in range(2)]
    for writer, (bank, total) in enumerate(zip(banks, (6000, 1500), strict=True)):
        bank.append(torch.zeros(total, 1), torch.full((total,), writer), step=0)
        bank.flush()
        assert len(banks[0]) == pytest.approx(6000 / 16, abs=80)  # what the first has seen, until it merges
    assert len(PredictionBank.open(path)) == pytest.approx(6000 / 16 + 1500 / 4, abs=120)
    merged = banks[0]
    merged.finish()
    counts = torch.bincount(merged.items(torch.arange(len(merged)))[1].flatten()).tolist()
    assert merged.meta["level"] == 4
    assert counts == [pytest.approx(6000 / 16, abs=75), pytest.approx(1500 / 16, abs=38)]  # four standard deviations


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2)])
def test_a_recording_goes_on_with_another_number_of_processes(tmp_path, before, after):
    path = PredictionBank.create(tmp_path, item_size=4).path
    for writer in range(before):
        record_share(path, writer, before, range(20))
    for writer in range(after):
        record_share(path, writer, after, range(15, 18))
    steps = finish(path).steps().sort().values
    expected = [step for step in range(15) for _ in range(before)]
    assert steps.tolist() == expected + [step for step in range(15, 18) for _ in range(after)]


def test_a_damaged_shard_is_named(tmp_path):
    bank = PredictionBank.create(tmp_path, item_size=4)
    record_items(bank, range(10))
    bank.finish()
    (shard,) = (tmp_path / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(RelossError, match=f"bank shard {shard} cannot be read"):
        len(PredictionBank.open(tmp_path))


@pytest.fixture
def three_shards(tmp_path):
    bank = PredictionBank.create(tmp_path / "bank", item_size=4)
    for index in range(3):
        record_items(bank, range(index, index + 1))
        bank.flush()
    bank.finish()
    return bank


def test_a_missing_shard_is_noticed(three_shards):
    bank, opened = three_shards.path, PredictionBank.open(three_shards.path)
    assert len(opened) == opened.meta["items"] == 3
    sorted((bank / "shards").iterdir())[1].unlink()
    said = f"bank {bank} has 2 of its 3 items: shards are missing in {bank / 'shards'}; restore .*, or remove {bank} to"
    for read in (PredictionBank.open, lambda path: opened.verify()):
        opened._shards = None
        with pytest.raises(RelossError, match=said):
            read(bank)
    meta = {name: value for name, value in three_shards.meta.items() if name != "items"}
    (bank / "bank.json").write_text(json.dumps(meta))  # as earlier versions wrote it
    assert len(PredictionBank.open(bank)) == 2


def test_the_number_of_items_does_not_change_the_fingerprint(three_shards):
    before = three_shards.fingerprint()
    three_shards.meta.pop("items")
    assert three_shards.fingerprint() == before


def test_shards_that_cannot_be_read_and_files_that_are_none(three_shards):
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
def test_a_shard_of_other_items_is_named(three_shards, change):
    shard = sorted((three_shards.path / "shards").iterdir())[1]
    content = load_file(shard)
    save_file({**content, **change(content)}, shard)
    with pytest.raises(
        RelossError, match=f"bank shard {shard} holds no items like the others'; restore it from a copy"
    ):
        PredictionBank.open(three_shards.path)


@pytest.mark.parametrize(
    ("meta", "wrong"),
    [
        ({}, "item_size, max_bytes, seed, level, complete, origin"),
        ([], "item_size, max_bytes, seed, level, complete, origin"),
        ({"item_size": 4, "max_bytes": 9, "seed": 0, "level": "0", "complete": True, "origin": None}, "level, origin"),
    ],
)
def test_a_bank_that_is_described_wrongly_is_named(three_shards, meta, wrong):
    path = three_shards.path / "bank.json"
    path.write_text(json.dumps(meta))
    with pytest.raises(RelossError, match=rf"{path} is damaged \(wrong: {wrong}\); remove it or restore"):
        PredictionBank.open(three_shards.path)


def test_a_bank_is_not_made_over_another_nor_opened_where_none_is(tmp_path):
    PredictionBank.create(tmp_path / "bank")
    with pytest.raises(RelossError, match="holds a prediction bank already"):
        PredictionBank.create(tmp_path / "bank")
    with pytest.raises(RelossError, match=f"no prediction bank at {tmp_path / 'absent'}"):
        PredictionBank.open(tmp_path / "absent")
    (tmp_path / "bank" / "bank.json").write_text("{")
    with pytest.raises(RelossError, match=r"bank\.json cannot be read as JSON"):
        PredictionBank.open(tmp_path / "bank")
    (tmp_path / "bank" / "bank.json").write_text("{}")
    with pytest.raises(RelossError, match=r"bank\.json is damaged \(wrong: item_size, max_bytes, seed, level"):
        PredictionBank.open(tmp_path / "bank")


def test_what_cannot_be_recorded(tmp_path):
    bank = PredictionBank.create(tmp_path, item_size=2)
    with pytest.raises(RelossError, match=r"the outputs of step 7 hold NaN: training diverged.* smaller learning rate"):
        bank.append(torch.tensor([[1.0], [float("nan")]]), torch.zeros(2), step=7)
    with pytest.raises(ValueError, match="must be tensors, not <class 'list'>"):
        bank.append([[1.0]], torch.zeros(1), step=0)
    with pytest.raises(ValueError, match="3 outputs, but 2 targets"):
        bank.append(torch.zeros(3, 1), torch.zeros(2), step=0)
    with pytest.raises(ValueError, match="writer must be one of 0 to 1, not 2"):
        PredictionBank.open(tmp_path, writer=2, writers=2)
    with pytest.raises(ValueError, match="must be positive"):
        PredictionBank.create(tmp_path / "other", item_size=0)
    bank.flush()
    assert len(bank) == 0
    bank.append(torch.zeros(2, 1), torch.zeros(2), step=7)
    with pytest.raises(ValueError, match=r"an example's outputs are \[3\], but were \[1\] before"):
        bank.append(torch.zeros(2, 3), torch.zeros(2), step=7)
    with pytest.raises(ValueError, match="step 6 comes after step 7; to go back to a step, resume there"):
        bank.append(torch.zeros(2, 1), torch.zeros(2), step=6)


def test_a_full_disk_loses_nothing_recorded_before(tmp_path, monkeypatch):
    bank = PredictionBank.create(tmp_path, item_size=4)
    record_items(bank, range(5))
    bank.flush()
    record_items(bank, range(5, 8))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RelossError, match=r"cannot write .*No space left on device; nothing .* lost"):
            bank.flush()
    assert PredictionBank.open(tmp_path).steps().tolist() == list(range(5))
    bank.flush()
    assert PredictionBank.open(tmp_path).steps().tolist() == list(range(8))
    assert json.loads((tmp_path / "bank.json").read_text())["item_size"] == 4


def test_a_shard_with_a_flipped_bit_is_named(improving_bank):
    bank = improving_bank(steps=4)
    bank.verify()
    (shard,) = (bank.path / "shards").iterdir()
    content = bytearray(shard.read_bytes())
    content[-1000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(RelossError, match=f"bank shard {shard} is damaged: its checksum is another; restore it"):
        PredictionBank.open(bank.path).verify()
