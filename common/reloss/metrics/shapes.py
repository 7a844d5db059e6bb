"""One check of shapes, whose argument is documentation and error message at the same time."""

from collections.abc import Mapping

from torch import Tensor


def check_shapes(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless every tensor has the shape in its name, such as "outputs [N, B, 2]".

    A letter stands for the same size everywhere. Every size except N must be at least 1.
    """
    sizes: dict[str, int] = {}
    if not all(_fits(tensor, name[name.index("[") + 1 : -1].split(", "), sizes) for name, tensor in tensors.items()):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors.values())
        raise ValueError(f"expected {' and '.join(tensors)}, every size except N at least 1, not {shapes}")


def _fits(tensor: Tensor, letters: list[str], sizes: dict[str, int]) -> bool:
    return tensor.dim() == len(letters) and all(
        size == (int(letter) if letter.isdigit() else sizes.setdefault(letter, size)) and (size > 0 or letter == "N")
        for letter, size in zip(letters, tensor.shape, strict=True)
    )
