"""The suggestions for an unknown name."""

import pytest

from reloss.runtime.errors import unknown

NAMES = ("classification/digits_cnn", "classification/digits8_cnn", "pose/lsp_lite0", "f1", "f2", "F_beta")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("clasification/digits_cnn", "did you mean classification/digits_cnn or classification/digits8_cnn?"),
        ("f_BETA", "did you mean F_beta?"),
        ("f1_scores", "did you mean f1?"),
        ("digits", "did you mean classification/digits_cnn or classification/digits8_cnn?"),
        ("xyz", f"valid: {', '.join(sorted(NAMES))}"),
    ],
)
def test_the_nearest_names_are_suggested_or_all_are_listed(name, hint):
    assert str(unknown("thing", name, NAMES)) == f"unknown thing '{name}'; {hint}"


def test_nothing_to_suggest():
    assert str(unknown("thing", "x", ())) == "unknown thing 'x'; valid: none"
