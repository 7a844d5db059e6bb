"""The words that the project does not use, and what to write in their place: see CONTRIBUTING.md."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOM = r"[\s#]+"  # between two words, also where a comment continues on the next line
WORDS = {
    r"anew": "again, or from scratch",
    r"(go|goes|going|gone|went) on": "resume, or continue",
    r"of which": "a second sentence",
    r"(is|are) of": "has, belongs to, or comes from",
    r"that there (is|are)": "that exist, or nothing",
    r"(is|are) said": "reported, or stated",
    r"what (came out|was found)": "the results",
    r"way out": "remedy",
    r"(put right|mend|mends|mended|mending)": "fix",
    r"begun alike": "with the same initialisation",
    r"beside": "next to, or as well as",
    r"(leave|leaves|left|leaving) out": "skip, or omit",
}
"""Regular expressions for whole words, and the replacement that the message names."""
PATTERNS = {re.compile(rf"\b{words.replace(' ', ROOM)}\b", re.IGNORECASE): better for words, better in WORDS.items()}

TEXT = {".md", ".py", ".sh", ".toml", ".yaml", ".yml", ".in", ".cff", ".css", ".js", ".j2", ""}
NOT_OURS = ("LICENSE", "results/records/", "tests/fixtures/", "tests/test_words.py")


def committed_files() -> Iterator[Path]:
    """Yield every text file of the project, in a checkout as well as in an unpacked archive."""
    folders = ("", ".ci", "benchmarks/**", "common/reloss/**", "docker/**", "docs/**", "requirements")
    folders += ("results/**", "tasks/**", "tests/**", "tools/**")
    for folder in folders:
        for path in sorted(ROOT.glob(f"{folder}/*" if folder else "*")):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and path.suffix in TEXT and not name.startswith(NOT_OURS):
                yield path


def unused_words(text: str) -> list[str]:
    """Return one message for each use of a word that the project does not use."""
    return [
        f"line {text[: match.start()].count(chr(10)) + 1}: '{' '.join(match[0].split())}': write {better}"
        for pattern, better in PATTERNS.items()
        for match in pattern.finditer(text)
    ]


FILES = {path.relative_to(ROOT).as_posix(): path for path in committed_files()}


def test_every_kind_of_file_is_read() -> None:
    assert {"README.md", "Makefile", ".ci/run", "docker/Dockerfile", "docs/concepts.md", "common/reloss/cli.py"} <= set(
        FILES
    )


@pytest.mark.parametrize("name", FILES)
def test_words_are_plain(name: str) -> None:
    text = FILES[name].read_text(encoding="utf-8")
    if name == "CONTRIBUTING.md":  # its table lists the words
        text = re.sub(r"^\|.*\|$", "", text, flags=re.MULTILINE)
    assert unused_words(text) == []


def test_the_guide_lists_every_word() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = "\n".join(re.findall(r"^\|.*\|$", guide, flags=re.MULTILINE))
    assert [pattern.pattern for pattern in PATTERNS if not pattern.search(rows)] == []


def test_this_test_sees_what_it_forbids() -> None:
    assert unused_words("It is made anew,\n# and goes\n# on.") == [
        "line 1: 'anew': write again, or from scratch",
        "line 2: 'goes # on': write resume, or continue",
    ]
    assert unused_words("The way outside, besides, recommend, and soft goes one") == []
