"""What a row of a table stands for: a kind that code compares, and a note that people read.

The two are joined into one text only where the row is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RowKind(StrEnum):
    """How a row relates to the paper, or why it is empty. The values are the words that are shown."""

    REPRODUCED = "reproduced"
    """Full data and protocol, and the published value within a narrow 95 % interval; see `verdicts.reproduction`."""
    NOT_REPRODUCED = "not reproduced"
    HIGHER = "higher than published"
    UNDECIDED = "undecided"
    """Full data and protocol, but too few seeds or too wide an interval to tell."""
    REDUCED = "reduced"
    """Smaller than in the paper; the note tells how."""
    EXTRA = "not in the paper"
    FULL = "full protocol"
    """As in the paper, but without a verified published number."""
    MEASURED = "measured"
    FINISHED = "finished"
    INCOMPLETE = "incomplete"
    """Some runs of the row did not finish; the note names them."""
    NOT_RUN = "not run"


TEXTS = {
    RowKind.FULL: "{kind}, {note}",
    RowKind.MEASURED: "{kind}, {note}",
    RowKind.INCOMPLETE: "{note}",
    RowKind.NOT_RUN: "{kind} ({note})",
}
"""How kind and note are joined; by default with a colon."""


@dataclass(frozen=True)
class RowStatus:
    """The status of a row.

    Attributes:
        kind: for code, and for the page to colour.
        note: how, or why.
        remarks: further remarks, such as runs that failed.
    """

    kind: RowKind
    note: str = ""
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        form = TEXTS.get(self.kind, "{kind}: {note}") if self.note else "{kind}"
        return "; ".join([form.format(kind=self.kind, note=self.note), *self.remarks])

    @property
    def details(self) -> str:
        """Everything but the kind."""
        return "; ".join(filter(None, [self.note, *self.remarks]))

    @property
    def is_run(self) -> bool:
        """Whether the row holds a result."""
        return self.kind is not RowKind.NOT_RUN
