import json

import pytest

from reloss.runtime.errors import RelossError
from reloss.surrogates import ClassificationReLoss, load


@pytest.mark.parametrize("width", [10**12, 10**30, 5, "4", [4], None])
def test_a_card_with_impossible_options_is_one_error(tmp_path, width):
    ClassificationReLoss(width=4).save_pretrained(tmp_path)
    path = tmp_path / "surrogate.json"
    card = json.loads(path.read_text())
    card["options"]["width"] = width
    card.pop("options_hash")  # as in a card of an earlier version
    path.write_text(json.dumps(card))
    with pytest.raises(RelossError, match=r"do not fit ClassificationReLoss|describes no ClassificationReLoss"):
        load(tmp_path)
