import os
import signal
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from reloss.runtime.checkpoint import load_checkpoint, save_checkpoint
from reloss.runtime.signals import Terminated, terminable, uninterrupted


class Signalled:
    """As it is saved, a signal arrives."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[type, tuple[()]]:
        os.kill(os.getpid(), self.number)
        return OrderedDict, ()


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_waits_until_what_is_being_saved_is_whole(tmp_path: Path, number: int, error: type) -> None:
    file = tmp_path / "whole.pt"
    state = {"first": torch.ones(3), "second": Signalled(number), "third": torch.ones(5)}
    with terminable():
        with pytest.raises(error), file.open("wb") as out, uninterrupted():
            torch.save(state, out)
        handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    loaded = torch.load(file, weights_only=True)
    assert (len(loaded["first"]), loaded["second"], len(loaded["third"])) == (3, {}, 5)
    assert handlers[1] is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_save_that_was_interrupted_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})
    with pytest.raises(Terminated), terminable():
        save_checkpoint(path, {"epoch": 2, "more": Signalled(signal.SIGTERM)})
    assert load_checkpoint(path, "") == {"epoch": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["last.pt"]
