"""Pictures of records, small enough to be put into a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from reloss.runtime.errors import RelossError

LONGEST = 1000  # pixels of a side


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, with its size, its alternative text and where it came from."""

    uri: str
    width: int
    height: int
    alt: str
    source: str


def read_png(path: Path, source: str) -> Picture:
    """Return a PNG file as WebP of at most LONGEST pixels a side; its `Description`, if it has one, says what it shows.

    Raises:
        RelossError: it cannot be read as a picture.
    """
    try:
        with Image.open(path) as image:
            described = str(image.info.get("Description", "")) or path.stem.replace("_", " ")
            small = image.convert("RGB")
            small.thumbnail((LONGEST, LONGEST))
            out = io.BytesIO()
            small.save(out, "WEBP", quality=80, method=4)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RelossError(f"{path} cannot be read as a picture ({error}); remove it") from error
    uri = f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
    return Picture(uri, small.width, small.height, described, source)
