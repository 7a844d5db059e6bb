import json

import pytest
from small import DIGITS

from reloss.experiment.records import read_runs
from reloss.report.comparison import compare, variant_label
from reloss.runtime.errors import UsageError

TUNED = "reloss@train.init=baseline,train.length=0.5"


@pytest.fixture
def runs(tmp_path, write_summary):
    for seed, (ordinary, learned) in enumerate([(0.90, 0.93), (0.92, 0.94), (0.94, 0.95)]):
        write_summary("ce", seed, ordinary)
        write_summary("reloss", seed, learned)
        write_summary("reloss", seed, learned, settings=("train.init=baseline", "train.length=0.5"))
    write_summary("approx", 7, 0.4, protocol="other")
    write_summary("approx", 0, 0.4, protocol="other")
    return tmp_path


def test_two_variants_are_paired_by_seed(runs):
    pair = compare(f"{DIGITS}:reloss", f"{DIGITS}:ce", read_runs(runs))
    assert pair.names == ("reloss", "ce")
    assert (pair.difference.mean, pair.difference.n, pair.wins, pair.losses) == (pytest.approx(2), 3, 3, 0)
    lines = pair.text().splitlines()
    assert lines[1:3] == ["  A  94.00 ± 1.00  n=3  reloss", "  B  92.00 ± 2.00  n=3  ce"]
    assert lines[3:5] == ["A minus B: +2.00 [-0.48, +4.48], paired over n=3", "A wins 3, B wins 0, ties 0"]
    assert lines[5] == "A and B are too close to tell: the 95 % interval contains 0."


def test_a_variant_has_the_name_of_its_folder_or_a_unique_beginning_of_it(runs):
    assert variant_label("reloss", ("train.init=baseline", "train.length=0.5")) == TUNED
    for name in (TUNED, "reloss@train.init"):
        pair = compare(f"{DIGITS}:{name}", f"{DIGITS}:reloss", read_runs(runs))
        assert (pair.names, pair.difference.mean, pair.wins) == ((TUNED, "reloss"), 0, 0)


def test_one_pair_and_another_protocol_are_named(runs):
    sentence = compare(f"{DIGITS}:approx", f"{DIGITS}:ce", read_runs(runs)).sentence()
    assert sentence.startswith("One common seed tells nothing")
    assert sentence.endswith("so it is not the loss alone.")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (f"{DIGITS}:reloss", "classification/cifar10_cnn:ce", "belong to different experiments"),
        (f"{DIGITS}:relos@x", f"{DIGITS}:ce", "did you mean reloss"),
        (f"{DIGITS}", f"{DIGITS}:ce", "a variant is written EXPERIMENT:LOSS"),
        (f"{DIGITS}x:ce", f"{DIGITS}:ce", "did you mean classification/digits_cnn"),
    ],
)
def test_what_cannot_be_compared_is_refused(cli, runs, first, second, message):
    with pytest.raises(UsageError, match=message):
        compare(first, second, read_runs(runs))
    code, _, err = cli("compare", first, second, "--runs", runs)
    assert (code, message in err) == (2, True)


def test_no_common_seed(tmp_path, write_summary):
    write_summary("ce", 0, 0.5)
    write_summary("reloss", 1, 0.5)
    with pytest.raises(UsageError, match=r"no finished seed in common \(seeds 1 and 0\)"):
        compare(f"{DIGITS}:reloss", f"{DIGITS}:ce", read_runs(tmp_path))


def test_json_has_one_number_per_name(cli, runs):
    code, out, err = cli("compare", f"{DIGITS}:reloss", f"{DIGITS}:ce", "--runs", runs, "--json")
    assert code == 0, err
    values = json.loads(out)
    assert (values["a"], values["b"], values["pairs"], values["wins"]) == ("reloss", "ce", 3, 3)
    assert not any(isinstance(value, list | dict) for value in values.values())
