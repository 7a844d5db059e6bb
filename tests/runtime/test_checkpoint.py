import os
import signal
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from reloss.runtime.checkpoint import load_checkpoint, save_checkpoint
from reloss.runtime.signals import Terminated, terminable, uninterrupted


class SendsSignal:
    """A value that sends a signal to this process while it is pickled."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[type, tuple[()]]:
        os.kill(os.getpid(), self.number)
        return OrderedDict, ()


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_waits_until_the_save_is_complete(tmp_path: Path, number: int, error: type) -> None:
    path = tmp_path / "state.pt"
    state = {"first": torch.ones(3), "second": SendsSignal(number), "third": torch.ones(5)}
    with terminable():
        with pytest.raises(error), path.open("wb") as file, uninterrupted():
            torch.save(state, file)
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    loaded = torch.load(path, weights_only=True)
    assert (len(loaded["first"]), loaded["second"], len(loaded["third"])) == (3, {}, 5)
    assert handlers[1] is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_interrupted_save_keeps_the_existing_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})
    with pytest.raises(Terminated), terminable():
        save_checkpoint(path, {"epoch": 2, "more": SendsSignal(signal.SIGTERM)})
    assert load_checkpoint(path, "") == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]
