import json

import pytest

from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import read_json, write_json
from reloss_tasks.mrc import download
from reloss_tasks.mrc.data import _find, check, fetch, fingerprint, load, read
from reloss_tasks.mrc.experiments import EXPERIMENTS

SQUAD = EXPERIMENTS["mrc/squad_minilm"]().data.model_copy(
    update={"train_questions": 20, "held_out": 9, "test_questions": 12}
)


@pytest.mark.parametrize(
    ("context", "text", "start", "span"),
    [
        ("He lives in Oslo.", "Oslo", 12, (12, 16)),
        ("Oslo, Oslo and Oslo", "Oslo", 9, (6, 10)),  # a start that is slightly wrong: the nearest occurrence
        ("Oslo, Oslo and Oslo", "Oslo", -1, (0, 4)),
        ("He lives in Oslo.", " Oslo ", 11, (12, 16)),
        ("He lives in Oslo.", "Paris", 3, None),
        ("He lives in Oslo.", "  ", 2, None),
        ("", "Oslo", 0, None),
        ("在北京市。", "北京市", 1, (1, 4)),
        ("在北京市。", "北京市", 400, (1, 4)),
    ],
)
def test_answers_are_found_in_the_passage(context, text, start, span):
    assert _find(context, text, start) == span


def test_splits_come_from_different_articles_and_are_always_the_same(questions):
    splits = load(SQUAD, questions)
    assert [len(part) for part in splits] == [20, 9, 12]
    assert not {q.article for q in splits.train} & {q.article for q in splits.validation}
    assert splits == load(SQUAD, questions)
    for question in (q for part in splits for q in part):
        (begin, end), (text,) = question.spans[0], question.answers
        assert question.context[begin:end] == text
    everything = load(
        SQUAD.model_copy(update={"train_questions": None, "held_out": 0, "test_questions": None}), questions
    )
    assert [len(part) for part in everything] == [48, 18, 18]
    assert everything.validation is everything.test
    assert check(SQUAD, questions).endswith(
        "20 train, 9 validation, 12 test questions, 0 test questions without an answer"
    )


def test_one_file_is_split_by_passages(questions):
    splits = load(EXPERIMENTS["mrc/cmrc2018_small"]().data, questions)
    assert [len(part) for part in splits] == [54, 12, 12]
    assert not {q.context for q in splits.train} & {q.context for q in splits.test}


def test_unanswerable_questions(questions):
    config = EXPERIMENTS["mrc/squad2_bert_base"]().data
    splits = load(config, questions)
    assert sum(not q.answers for q in splits.train) == 16
    assert "6 test questions without an answer" in check(config, questions)


def test_training_skips_answers_that_do_not_occur(questions, tmp_path):
    for split in ("train", "dev"):
        content = read_json(questions / "squad" / f"{split}-v1.1.json")
        content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["text"] = "Atlantis"
        write_json(tmp_path / "squad" / f"{split}-v1.1.json", content)
    config = SQUAD.model_copy(update={"train_questions": None, "held_out": 0, "test_questions": None})
    splits = load(config, tmp_path)
    assert [len(part) for part in splits] == [47, 18, 18]
    assert splits.test[0].answers == ("Atlantis",)
    assert splits.test[0].spans == ()


def test_missing_data_are_named(questions, tmp_path):
    with pytest.raises(RelossError, match=r"squad/train-v1.1.json is missing; run `reloss data fetch squad"):
        load(SQUAD, tmp_path)
    with pytest.raises(RelossError, match=r"only 36 of 100 questions for data.train_questions; lower it"):
        load(SQUAD.model_copy(update={"train_questions": 100}), questions)
    write_json(tmp_path / "squad" / "train-v1.1.json", {"data": [{"paragraphs": [{"qas": [{}]}]}]})
    with pytest.raises(RelossError, match="is not in SQuAD's JSON: KeyError 'context'"):
        read(tmp_path / "squad" / "train-v1.1.json")
    write_json(tmp_path / "squad" / "train-v1.1.json", [1])
    with pytest.raises(RelossError, match="is not in SQuAD's JSON"):
        read(tmp_path / "squad" / "train-v1.1.json")


def test_fingerprint_changes_with_the_files(questions, tmp_path):
    for split in ("train", "dev"):
        write_json(tmp_path / "squad" / f"{split}-v1.1.json", read_json(questions / "squad" / f"{split}-v1.1.json"))
    before = fingerprint(SQUAD, tmp_path)
    assert before == fingerprint(SQUAD, questions)
    write_json(tmp_path / "squad" / "dev-v1.1.json", {"data": []})
    assert fingerprint(SQUAD, tmp_path) != before


def test_every_experiments_files_can_be_fetched(tmp_path, monkeypatch):
    requests = []
    monkeypatch.setattr(download.download, "fetch", lambda url, path, checksum: requests.append((url, path, checksum)))
    for make in EXPERIMENTS.values():
        config = make().data
        if config.name != "dureader_robust":
            fetch(config, tmp_path)
    urls = {url for url, _, _ in requests}
    assert len(urls) == 4 + 3 + 2
    assert all(url.startswith("https://") for url in urls)
    assert {len(checksum or "") for _, _, checksum in requests} == {0, 64}
    with pytest.raises(UsageError, match=r"squad has no file mine.json, only"):
        fetch(SQUAD.model_copy(update={"train_file": "mine.json"}), tmp_path)


def test_dureader_is_unpacked(tmp_path, monkeypatch):
    import io
    import tarfile

    def archive(url, path, checksum):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w:gz") as opened:
            for name in ("train", "dev"):
                member = tarfile.TarInfo(f"dureader_robust-data/{name}.json")
                member.size = 11
                opened.addfile(member, io.BytesIO(b'{"data":[]}'))

    monkeypatch.setattr(download.download, "fetch", archive)
    fetch(EXPERIMENTS["mrc/dureader_roberta_wwm"]().data, tmp_path)
    assert sorted(path.name for path in (tmp_path / "dureader_robust").iterdir()) == ["dev.json", "train.json"]
    assert read_json(tmp_path / "dureader_robust" / "dev.json") == {"data": []}


def test_questions_that_are_scored_have_different_ids(questions, tmp_path):
    for split in ("train", "dev"):
        content = read_json(questions / "squad" / f"{split}-v1.1.json")
        first, second = content["data"][1]["paragraphs"][0]["qas"][:2]
        second["id"] = first["id"]
        write_json(tmp_path / "squad" / f"{split}-v1.1.json", content)
    config = SQUAD.model_copy(update={"test_questions": None, "held_out": 0})
    with pytest.raises(RelossError, match=r"1 ids of test or validation questions .* such as test1-0-0; give every"):
        load(config, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_impossible": "false"}, r"question 7: is_impossible is 'false'; write true or false"),
        ({"is_impossible": 1}, r"question 7: is_impossible is 1; write true or false"),
        (
            {"question": "wh\ud800y?"},
            r"question 7: question holds half a character \(\\ud800, .*\) at position 2; remove",
        ),
        ({"id": "\udc00"}, r"id holds half a character"),
        ({"answers": [{"text": "\udfff"}]}, r"question 7: answers holds half a character \(\\udfff"),
        ({"answers": [{"text": 5}]}, r"question 7: answers holds 5, which is not a text"),
        ({"answers": [{"text": "a", "answer_start": "0"}]}, r"question 7: answer_start is '0'; write a whole number"),
        ({"answers": {}}, None),
        ({"question": None}, r"question 7: question holds None, which is not a text"),
        ({"answers": ["a"]}, r"is not in SQuAD's JSON: TypeError"),
    ],
)
def test_wrong_fields_are_named_with_file_and_question(tmp_path, changes, message):
    entry = {"id": 7, "question": "why?", "answers": [{"text": "a", "answer_start": 0}], **changes}
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "a b", "qas": [entry]}]}]}))
    if message is None:
        assert read(path)[0].answers == ()
        return
    with pytest.raises(RelossError, match=rf"questions\.json.*{message}"):
        read(path)
