"""Images of records, small enough to embed in a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from reloss.runtime.errors import RelossError

MAX_SIDE = 1000
"""Longest side in pixels; a larger image is scaled down."""


@dataclass(frozen=True)
class EmbeddedImage:
    """An image as a data URI, with its size in pixels, its alternative text and its path below the records."""

    uri: str
    width: int
    height: int
    alt: str
    source: str


def embed_png(path: Path, source: str) -> EmbeddedImage:
    """Return a PNG file as WebP with sides of at most MAX_SIDE pixels.

    The alternative text is the `Description` that the file holds, else its name.

    Raises:
        RelossError: the file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            alt = str(image.info.get("Description", "")) or path.stem.replace("_", " ")
            small = image.convert("RGB")
            small.thumbnail((MAX_SIDE, MAX_SIDE))
            out = io.BytesIO()
            small.save(out, "WEBP", quality=80, method=4)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RelossError(f"{path} cannot be read as an image ({error}); remove it") from error
    uri = f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
    return EmbeddedImage(uri, small.width, small.height, alt, source)
