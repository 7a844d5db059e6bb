import pytest
from recordings import record_items

from reloss.learning import PredictionBank


@pytest.fixture
def three_shards(tmp_path):
    bank = PredictionBank.create(tmp_path / "bank", item_size=4)
    for index in range(3):
        record_items(bank, range(index, index + 1))
        bank.flush()
    bank.finish()
    return bank
