"""One check of shapes, whose argument is documentation and error message at the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


class ShapeError(ValueError):
    """The error of `check_shapes`.

    Attributes:
        shapes: the shapes, by the name with the expected shape.
        remedy: the end of the message.
    """

    shapes: Mapping[str, Sequence[int]]
    remedy: str

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]], remedy: str = "") -> ShapeError:
        """Return the error for tensors of these shapes."""
        sizes = "every size except N" if any("[N" in name for name in shapes) else "every size"
        found = ", ".join(str(list(shape)) for shape in shapes.values())
        error = cls(f"expected {' and '.join(shapes)}, {sizes} at least 1, not {found}{remedy}")
        error.shapes, error.remedy = dict(shapes), remedy
        return error

    def with_remedy(self, remedy: str) -> ShapeError:
        """Return this error with a remedy at the end of its message."""
        return self.of(self.shapes, remedy)

    def of_one_batch(self) -> ShapeError:
        """Return this error about items [N, B, ...] for a caller who passed one batch [B, ...]."""
        shapes = {name.replace("[N, ", "["): shape[1:] for name, shape in self.shapes.items()}
        return self.of(shapes, self.remedy)


def check_shapes(tensors: Mapping[str, Tensor]) -> None:
    """Raise ShapeError unless every tensor has the shape in its name, such as "outputs [N, B, 2]".

    A letter stands for the same size everywhere. Every size except N must be at least 1.

    Raises:
        ShapeError: a ValueError; the shapes do not agree.
        ValueError: a value is not a tensor.
    """
    check_tensors(**{name.partition(" ")[0]: tensor for name, tensor in tensors.items()})
    sizes: dict[str, int] = {}
    if not all(_fits(tensor, name[name.index("[") + 1 : -1].split(", "), sizes) for name, tensor in tensors.items()):
        raise ShapeError.of({name: tuple(tensor.shape) for name, tensor in tensors.items()})


def check_tensors(**values: object) -> None:
    """Raise ValueError unless every value, given as name=value, is a tensor."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise ValueError(f"{name} must be a torch tensor, not {kind}; torch.as_tensor converts lists and arrays")


def _fits(tensor: Tensor, letters: list[str], sizes: dict[str, int]) -> bool:
    return tensor.dim() == len(letters) and all(
        size == (int(letter) if letter.isdigit() else sizes.setdefault(letter, size)) and (size > 0 or letter == "N")
        for letter, size in zip(letters, tensor.shape, strict=True)
    )
