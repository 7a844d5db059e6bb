import zlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from reloss.runtime.tensors import content_hash, load_tensors, save_tensors

TENSORS = {
    "half": torch.arange(6).half().reshape(2, 3),
    "brain": torch.ones(4, dtype=torch.bfloat16),
    "whole": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
}


def test_tensors_are_read_back_and_a_flipped_bit_is_detected(tmp_path):
    path = tmp_path / "tensors.safetensors"
    save_tensors(path, TENSORS)
    loaded = load_tensors(path)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum does not match"):
        load_tensors(path)


@pytest.mark.parametrize("changed", ["name", "dtype", "shape"])
def test_the_checksum_covers_names_types_and_shapes(tmp_path, changed):
    path = tmp_path / "tensors.safetensors"
    original = {"name": torch.arange(6)}
    save_tensors(path, original)
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    other = {"dtype": original["name"].view(torch.float64), "shape": original["name"].reshape(2, 3)}
    tensors = {"other": original["name"]} if changed == "name" else {"name": other[changed]}
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match="checksum does not match"):
        load_tensors(path)


@pytest.mark.parametrize(
    ("metadata", "intact"),
    [(None, True), ({"crc32": f"{zlib.crc32(bytes(8)):08x}"}, True), ({"crc32": "00000000"}, False)],
)
def test_a_file_of_an_earlier_version_has_no_checksum_or_one_of_the_bytes(tmp_path, metadata, intact):
    save_file({"a": torch.zeros(8, dtype=torch.uint8)}, tmp_path / "old.safetensors", metadata=metadata)
    if intact:
        assert load_tensors(tmp_path / "old.safetensors")["a"].tolist() == 8 * [0]
    else:
        with pytest.raises(ValueError, match="checksum does not match"):
            load_tensors(tmp_path / "old.safetensors")


def test_the_hash_of_contents_depends_on_values_types_and_shapes_but_not_on_parts():
    whole = torch.arange(12.0).reshape(6, 2)
    expected = content_hash("outputs", [whole])
    assert content_hash("outputs", whole.split(1)) == content_hash("outputs", whole.split(4)) == expected
    others = [content_hash("outputs", [values]) for values in (whole + 1, whole.reshape(4, 3), whole.view(torch.int32))]
    assert len({expected, content_hash("targets", [whole]), *others}) == 5
