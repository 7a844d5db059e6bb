import pytest
import yaml

from reloss.experiment.task import tasks
from reloss.report.published import Published, read_published
from reloss.runtime.errors import RelossError

ENTRY = {"experiment": "classification/digits_cnn", "loss": "ce", "metric": "accuracy", "source": "A. Author, 2020"}


def write(tmp_path, **changes):
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump([{**ENTRY, "value": 98.5, "verified": "read in table 1", **changes}]))
    return path


@pytest.mark.parametrize("task", tasks().values(), ids=lambda task: task.name)
def test_every_task_lists_numbers_of_its_own_experiments(task):
    entries = read_published(task.folder / "published.yaml")
    assert entries
    for entry in entries:
        config = task.experiments[entry.experiment]()
        assert entry.loss in config.losses
        assert entry.metric == config.score or entry.needs
        assert entry.value is None or 0 < entry.value < 100
    assert len({(entry.experiment, entry.loss, entry.method) for entry in entries}) == len(entries)


def test_mmpose_itself_is_above_the_published_learned_loss():
    entries = read_published(tasks()["pose"].folder / "published.yaml")
    same = [entry for entry in entries if entry.experiment == "pose/coco_hrnet_w32_256x192"]
    assert {entry.method: entry.value for entry in same if entry.method} == {"plain": 74.9, "DARK": 75.7, "UDP": 76.2}
    assert {entry.loss: entry.value for entry in same if not entry.method} == {"mse": 74.4, "reloss": 74.8}


def test_a_verified_value_is_shown_with_its_source(tmp_path):
    (entry,) = read_published(write(tmp_path))
    assert str(entry) == "98.5 (A. Author, 2020)"
    (entry,) = read_published(write(tmp_path, table="table 2", page=7))
    assert str(entry) == "98.5 (A. Author, 2020, table 2, p. 7)"


def test_a_value_that_was_not_recorded_has_a_text(tmp_path):
    (entry,) = read_published(write(tmp_path, value=None, verified="value not recorded"))
    assert str(entry) == "unverified: value not recorded"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verified": "value not recorded"}, "a value needs the way it was verified"),
        ({"value": None}, "a value needs the way it was verified"),
        ({"value": "high"}, "entry 1, value: .*valid number"),
        ({"value": float("nan")}, "entry 1, value: .*finite"),
        ({"page": "four"}, "entry 1, page: .*valid integer"),
        ({"page": 0}, "greater than or equal to 1"),
        ({"seeds": 0}, "entry 1, seeds"),
        ({"vlaue": 3}, "vlaue"),
    ],
)
def test_a_wrong_entry_is_refused_in_one_line(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(RelossError, match=message) as caught:
        read_published(path)
    assert str(caught.value).startswith(f"{path}: entry 1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("a: 1\n", "not a list of entries"), ("- [\n", "cannot be read")])
def test_a_file_without_a_list_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "published.yaml").write_text(text)
    with pytest.raises(RelossError, match=message) as caught:
        read_published(tmp_path / "published.yaml")
    assert "\n" not in str(caught.value)


def test_a_duplicate_number_is_refused(tmp_path):
    path = write(tmp_path)
    path.write_text(path.read_text() * 2)
    with pytest.raises(RelossError, match="more than one number for classification/digits_cnn with ce"):
        read_published(path)


@pytest.mark.parametrize("missing", ["verified", "source", "metric"])
def test_every_number_needs_its_source(missing):
    entry = {**ENTRY, "value": 98.5, "verified": "read in table 1"}
    del entry[missing]
    with pytest.raises(ValueError, match=missing):
        Published.model_validate(entry)


def test_an_empty_file_holds_no_numbers(tmp_path):
    (tmp_path / "published.yaml").write_text("# none yet\n")
    assert read_published(tmp_path / "published.yaml") == []
