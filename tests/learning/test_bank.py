import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from recordings import ITEM_BYTES, item, record_items
from torch.testing import assert_close

from reloss.learning import PredictionBank, shards
from reloss.learning.bank import compact
from reloss.learning.shards import ShardFolder
from reloss.runtime.errors import RelossError


def contents(bank: PredictionBank) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return *bank.items(torch.arange(len(bank))), bank.steps()


def assert_same(bank: PredictionBank, expected: PredictionBank) -> None:
    for values, expected_values in zip(contents(bank), contents(expected), strict=True):
        assert_close(values, expected_values, rtol=0, atol=0)


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


def test_items_are_consecutive_examples_for_any_batch_sizes(tmp_path):
    bank = PredictionBank.create(tmp_path, item_size=4)
    examples = torch.arange(26.0)
    for step, batch in enumerate(examples.split([3, 1, 10, 2, 2, 8])):
        bank.append(batch[:, None], batch.long(), step)
    bank.flush()
    outputs, targets = bank.items(torch.arange(len(bank)))
    assert_close(outputs.flatten(), examples[:24], rtol=0, atol=0)
    assert targets.flatten().tolist() == list(range(24))
    assert bank.steps().tolist() == [1, 2, 2, 3, 5, 5]  # the step of an item's last example


def test_a_flush_drops_examples_that_do_not_fill_an_item(tmp_path):
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
    """Besides the items, a shard holds a header of about 400 bytes."""
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
    """Chi-square with 9 degrees of freedom: the 99.9 % quantile is 27.9; a prefix or suffix would give thousands."""
    bank = PredictionBank.create(tmp_path, item_size=1, max_bytes=1000 * (2 + 8 + 8 + 8))
    total = 20_000
    bank.append(torch.arange(total)[:, None] % 7 / 7, torch.arange(total), step=0)
    bank.finish()
    positions = bank.items(torch.arange(len(bank)))[1].flatten()
    tenths = torch.bincount(positions * 10 // total, minlength=10).double()
    expected = len(bank) / 10
    assert 400 <= len(bank) <= 1000
    assert float(((tenths - expected) ** 2 / expected).sum()) < 27.9
    assert torch.equal(positions, positions.unique())


def test_the_seed_decides_which_items_stay(tmp_path):
    banks = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        bank = PredictionBank.create(tmp_path / name, item_size=4, max_bytes=50 * ITEM_BYTES, seed=seed)
        record_items(bank, range(300))
        bank.finish()
        banks.append((bank.steps().tolist(), bank.fingerprint()))
    assert banks[0] == banks[1]
    assert banks[0][0] != banks[2][0]
    assert banks[0][1] != banks[2][1]


def test_a_bank_can_be_read_while_it_is_recorded(tmp_path):
    bank = PredictionBank.create(tmp_path, item_size=4, max_bytes=40 * ITEM_BYTES)
    record_items(bank, range(30))
    bank.flush()
    reader = PredictionBank.open(tmp_path)
    before = contents(reader)
    record_items(bank, range(30, 500))  # removes items that the reader has mapped
    bank.flush()
    assert before[2].tolist() == list(range(30))
    for values, reread in zip(before, contents(reader), strict=True):
        assert_close(values, reread, rtol=0, atol=0)
    assert_same(PredictionBank.open(tmp_path), bank)


def test_a_bank_can_be_read_while_items_are_removed(tmp_path):
    """A reader sees only whole shards at any moment, although files come and go."""
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
def test_a_killed_recording_resumes_with_the_same_items(tmp_path, seed):
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
    whole.resume(total)
    record_items(whole, range(total, flushed))  # if the child recorded more items than `whole`
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
    """Run in a forked child, because a fresh interpreter takes seconds to import torch."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def test_resume_removes_that_step_and_later_ones(tmp_path):
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


def test_a_kill_between_raising_the_level_and_removing_items(tmp_path, monkeypatch):
    budget = {"item_size": 4, "max_bytes": 20 * ITEM_BYTES}
    whole, killed = (PredictionBank.create(tmp_path / name, **budget) for name in ("whole", "killed"))
    record_items(whole, range(100))
    whole.finish()

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ShardFolder, "filter", kill)
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
    """Record item `writer` of each step, as one of several processes; the content identifies step and writer."""
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
    """At once or one after the other: the same whole shards, within the budget, a sample of all processes."""
    budget = {"item_size": 4, "max_bytes": 60 * ITEM_BYTES}
    parallel, serial = (PredictionBank.create(tmp_path / name, **budget).path for name in ("parallel", "serial"))
    recorders = [start(record_share, parallel, writer, 3, range(300)) for writer in range(3)]
    for writer in range(3):
        recorders[writer].join()
        record_share(serial, writer, 3, range(300))
    assert [recorder.exitcode for recorder in recorders] == [0, 0, 0]
    bank, expected = finish(parallel), finish(serial)
    assert_same(bank, expected)
    assert bank.fingerprint() == expected.fingerprint()
    assert sorted(path.name for path in parallel.iterdir()) == ["bank.json", "shards"]
    outputs, targets, steps = contents(bank)
    writers = targets[:, 0] // 10 - steps * 10
    assert 15 <= len(bank) <= 60
    assert writers.unique().tolist() == [0, 1, 2]
    for row, (step, writer) in enumerate(zip(steps.tolist(), writers.tolist(), strict=True)):
        assert_close(outputs[row], item(step * 10 + writer)[0].half().float(), rtol=0, atol=0)


def test_the_sample_is_uniform_even_if_one_process_records_more(tmp_path):
    """Writer 0 records four times as many items as writer 1, so it reaches a higher level; both end there."""
    path = PredictionBank.create(tmp_path, item_size=1, max_bytes=1000 * (2 + 8 + 8 + 8)).path
    banks = [PredictionBank.open(path, writer=writer, writers=2) for writer in range(2)]
    for writer, (bank, total) in enumerate(zip(banks, (6000, 1500), strict=True)):
        bank.append(torch.zeros(total, 1), torch.full((total,), writer), step=0)
        bank.flush()
        assert len(banks[0]) == pytest.approx(6000 / 16, abs=80)  # its cached list of shards, until it merges
    assert len(PredictionBank.open(path)) == pytest.approx(6000 / 16 + 1500 / 4, abs=120)
    merged = banks[0]
    merged.finish()
    counts = torch.bincount(merged.items(torch.arange(len(merged)))[1].flatten()).tolist()
    assert merged.meta["level"] == 4
    assert counts == [pytest.approx(6000 / 16, abs=75), pytest.approx(1500 / 16, abs=38)]  # four standard deviations


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2)])
def test_a_recording_resumes_with_another_number_of_processes(tmp_path, before, after):
    path = PredictionBank.create(tmp_path, item_size=4).path
    for writer in range(before):
        record_share(path, writer, before, range(20))
    for writer in range(after):
        record_share(path, writer, after, range(15, 18))
    steps = finish(path).steps().sort().values
    expected = [step for step in range(15) for _ in range(before)]
    assert steps.tolist() == expected + [step for step in range(15, 18) for _ in range(after)]


def test_the_number_of_items_does_not_change_the_fingerprint(three_shards):
    before = three_shards.fingerprint()
    three_shards.meta.pop("items")
    assert three_shards.fingerprint() == before


@pytest.mark.parametrize(
    ("meta", "wrong"),
    [
        ({}, "item_size, max_bytes, seed, level, complete, origin"),
        ([], "item_size, max_bytes, seed, level, complete, origin"),
        ({"item_size": 4, "max_bytes": 9, "seed": 0, "level": "0", "complete": True, "origin": None}, "level, origin"),
    ],
)
def test_the_error_names_a_bank_with_a_damaged_description(three_shards, meta, wrong):
    path = three_shards.path / "bank.json"
    path.write_text(json.dumps(meta))
    with pytest.raises(RelossError, match=rf"{path} is damaged \(wrong: {wrong}\); remove it or restore"):
        PredictionBank.open(three_shards.path)


def test_create_refuses_an_existing_bank_and_open_a_missing_one(tmp_path):
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


def test_append_refuses_bad_batches(tmp_path):
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
    with pytest.raises(ValueError, match=r"an example's outputs have shape \[3\], but had \[1\] before"):
        bank.append(torch.zeros(2, 3), torch.zeros(2), step=7)
    with pytest.raises(ValueError, match="step 6 comes after step 7; call resume to return to an earlier step"):
        bank.append(torch.zeros(2, 1), torch.zeros(2), step=6)


@pytest.mark.parametrize(
    ("outputs", "targets", "step", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4).long(), 9, r"an example's targets have shape \[4\], but had \[\] before"),
        (
            torch.zeros(2, 3),
            torch.zeros(2),
            9,
            "stored as torch.float16, but were stored as torch.int64 before",
        ),
        (torch.zeros(2, 3).long(), torch.zeros(2).long(), 9, "outputs must be of a floating type, not torch.int64"),
        (torch.tensor(0.0), torch.tensor(0), 9, "must be batches"),
        (torch.zeros(2, 3), torch.zeros(2).long(), -1, "step must be a whole number from 0 to 999999999, not -1"),
        (torch.zeros(2, 3), torch.zeros(2).long(), 0.5, "step must be a whole number"),
        (torch.zeros(2, 3), torch.zeros(2).long(), 10**9, "step must be a whole number"),
    ],
)
@pytest.mark.parametrize("reopened", [False, True])
def test_append_refuses_what_would_make_the_bank_unreadable(tmp_path, outputs, targets, step, message, reopened):
    bank = PredictionBank.create(tmp_path, item_size=4)
    record_items(bank, range(3))
    bank.flush()
    if reopened:
        bank = PredictionBank.open(tmp_path)
        bank.resume(3)
    with pytest.raises(ValueError, match=message):
        bank.append(outputs, targets, step)
    record_items(bank, range(3, 5))
    bank.finish()
    assert PredictionBank.open(tmp_path).steps().tolist() == [0, 1, 2, 3, 4]


def test_a_complete_bank_records_only_after_resume(three_shards):
    with pytest.raises(ValueError, match="is complete; call resume to record more"):
        record_items(three_shards, range(3, 4))
    three_shards.resume(3)
    record_items(three_shards, range(3, 4))
    three_shards.finish()
    assert len(PredictionBank.open(three_shards.path)) == 4


def test_the_fingerprint_follows_the_contents(tmp_path):
    """Also without the hashes of the contents, which banks of earlier versions lack, there is a fingerprint."""
    banks = []
    for name, shift in (("a", 0), ("b", 0), ("c", 1)):
        bank = PredictionBank.create(tmp_path / name, item_size=4)
        for index in range(5):
            outputs, targets = item(index)
            bank.append(outputs + shift, targets, step=index)
            bank.flush() if name == "b" else None
        bank.finish()
        banks.append(PredictionBank.open(tmp_path / name))
    same, parts, other = (bank.fingerprint() for bank in banks)
    assert same == parts != other
    for bank in banks:
        bank.meta.pop("contents")
    assert len({bank.fingerprint() for bank in banks}) == 1


def test_every_flush_maps_only_its_own_shard(tmp_path, monkeypatch):
    mapped = []
    map_shard = shards._map_shard
    monkeypatch.setattr(shards, "_map_shard", lambda path: mapped.append(path) or map_shard(path))
    bank = PredictionBank.create(tmp_path, item_size=4)
    for index in range(30):
        record_items(bank, range(index, index + 1))
        bank.flush()
    bank.finish()
    assert len(mapped) <= 2 * 30  # once when it is written, and once by `finish`


@pytest.mark.parametrize(
    "change",
    [{"item_size": 0}, {"max_bytes": -1}, {"level": -1}, {"level": 10**9}, {"items": "3"}, {"contents": ["a"]}],
)
def test_a_description_with_impossible_numbers_is_refused(three_shards, change):
    (three_shards.path / "bank.json").write_text(json.dumps({**three_shards.meta, **change}))
    with pytest.raises(RelossError, match="bank"):
        PredictionBank.open(three_shards.path).verify()


def test_a_damaged_level_is_named(tmp_path):
    bank = PredictionBank.create(tmp_path, item_size=4)
    (tmp_path / "level1.json").write_text('"2"')
    for read in (lambda: PredictionBank.open(tmp_path, writer=1, writers=2), bank.merge):
        with pytest.raises(RelossError, match=r"level1\.json is damaged \(not a level\)"):
            read()


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


def test_numbers_can_be_stored_in_full_precision(tmp_path):
    outputs, targets = torch.tensor([2e5 + 1 / 3, 1e-9]), torch.tensor([123456.7, 0.0])
    bank = PredictionBank.create(tmp_path / "full", item_size=2, full_precision=True)
    bank.append(outputs, targets, 0)
    bank.finish()
    restored = PredictionBank.open(tmp_path / "full").items(torch.tensor([0]))
    assert torch.equal(restored[0], outputs[None])
    assert torch.equal(restored[1], targets[None])
