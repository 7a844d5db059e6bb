"""mmpose's config files: the ones in tasks/pose/configs, and the ones that mmpose ships."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

from mmengine.config import Config

from reloss.runtime.errors import UsageError

CONFIGS = Path(__file__).parent / "configs"


def read_mmpose_config(name: str) -> Config:
    """Return the config in the file `name` of tasks/pose/configs, or in a file that mmpose ships (mmpose::<path>).

    Raises:
        UsageError: there is no such config.
    """
    return copy.deepcopy(_parsed(name))


@cache
def _parsed(name: str) -> Config:
    """Return the config, for reading only. Parsing takes a second: mmengine reads mmpose's index of 120 files."""
    try:
        if name.startswith("mmpose::"):
            from mmengine.hub import get_config

            return get_config(name)
        return Config.fromfile(str(CONFIGS / name))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no mmpose config {name}: {error}; set model.config to mmpose::PATH, or to a file in {CONFIGS}"
        ) from error


def heatmap_size(name: str) -> tuple[int, int]:
    """Return height and width of the heatmaps in the config `name`.

    Raises:
        UsageError: there is no such config, or its network predicts no heatmaps.
    """
    try:
        width, height = _parsed(name).codec.heatmap_size
    except (AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            f"the mmpose config {name} has no heatmaps (codec.heatmap_size); set model.config to a heatmap model"
        ) from error
    return height, width
