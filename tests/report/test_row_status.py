import pytest

from reloss.report.row_status import RowKind, RowStatus


@pytest.mark.parametrize(
    ("status", "text", "details"),
    [
        (RowStatus(RowKind.REPRODUCED), "reproduced", ""),
        (RowStatus(RowKind.REDUCED, "800 persons"), "reduced: 800 persons", "800 persons"),
        (RowStatus(RowKind.NOT_RUN, "no record"), "not run (no record)", "no record"),
        (RowStatus(RowKind.INCOMPLETE, "seed 1 failed: nan"), "seed 1 failed: nan", "seed 1 failed: nan"),
        (RowStatus(RowKind.FULL, "no verified number"), "full protocol, no verified number", "no verified number"),
        (RowStatus(RowKind.EXTRA, "", ("a", "b")), "not in the paper; a; b", "a; b"),
        (RowStatus(RowKind.REDUCED, "1 of 3 seeds", ("a",)), "reduced: 1 of 3 seeds; a", "1 of 3 seeds; a"),
    ],
)
def test_kind_note_and_remarks_are_joined_when_shown(status, text, details):
    assert (str(status), status.details) == (text, details)
    assert status.is_run == (status.kind is not RowKind.NOT_RUN)
