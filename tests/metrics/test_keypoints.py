from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from reloss.metrics import COCO_SIGMAS, decode_heatmaps, heatmap_pck, oks, pck


def bump(x: float, y: float, height: int = 12, width: int = 9) -> Tensor:
    """A Gaussian of standard deviation 1.5 around (x, y)."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    return torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 4.5)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((4.0, 6.0), (4.0, 6.0)),  # equal neighbours
        ((4.3, 6.0), (4.25, 6.0)),
        ((3.7, 6.4), (3.75, 6.25)),
        ((0.0, 0.0), (0.0, 0.0)),  # a corner is not refined
        ((8.0, 11.0), (8.0, 11.0)),
    ],
)
def test_heatmaps_are_decoded_to_quarter_pixels(place: tuple[float, float], expected: tuple[float, float]) -> None:
    assert decode_heatmaps(bump(*place)).tolist() == list(expected)
    assert decode_heatmaps(bump(*place), refine=False).tolist() == [round(place[0]), round(place[1])]


def test_a_heatmap_without_a_positive_value_has_no_place() -> None:
    assert decode_heatmaps(torch.zeros(2, 4, 5)).tolist() == [[-1, -1], [-1, -1]]
    with pytest.raises(ValueError, match=r"\[H, W\]|H, W"):
        decode_heatmaps(torch.zeros(3))


def test_pck_counts_visible_joints_nearer_than_the_threshold() -> None:
    targets = torch.tensor([[[[0.0, 0.0, 1.0], [10.0, 10.0, 2.0], [5.0, 5.0, 0.0]]]])
    outputs = torch.tensor([[[[0.9, 0.0], [10.0, 12.0], [99.0, 99.0]]]])
    norm = torch.tensor([[10.0]])
    assert pck(outputs, targets, threshold=0.1, norm=norm).tolist() == [0.5]
    assert pck(outputs, targets, threshold=0.25, norm=norm).tolist() == [1.0]
    assert pck(outputs, targets, threshold=0.08, norm=norm).tolist() == [0.0]
    sides = torch.tensor([[[10.0, 40.0]]])
    assert pck(outputs, targets, threshold=0.1, norm=sides).tolist() == [1.0]
    invisible = targets.clone()
    invisible[..., 2] = 0
    assert pck(outputs, invisible, threshold=0.1, norm=norm).tolist() == [0.0]
    assert pck(outputs, targets, threshold=0.1, norm=torch.zeros(1, 1)).tolist() == [0.0]


def test_heatmap_pck_decodes_both_sides() -> None:
    targets = torch.stack([bump(4, 6), bump(2, 2), torch.zeros(12, 9)])[None, None]
    outputs = torch.stack([bump(4, 6), bump(6, 9), bump(1, 1)])[None, None]
    assert heatmap_pck(outputs, targets).tolist() == [0.5]
    assert heatmap_pck(targets, targets).tolist() == [1.0]
    with pytest.raises(ValueError, match="targets"):
        heatmap_pck(outputs, targets[0])


def test_oks_is_cocos() -> None:
    cocoeval = pytest.importorskip("xtcocotools.cocoeval", reason="xtcocotools is not installed")
    generator = torch.Generator().manual_seed(0)
    count, joints = 20, len(COCO_SIGMAS)
    targets = torch.rand(count, joints, 3, generator=generator) * 100
    targets[..., 2] = torch.randint(0, 3, (count, joints), generator=generator)
    targets[:, 0, 2] = 2
    outputs = targets[..., :2] + torch.randn(count, joints, 2, generator=generator) * 5
    areas = 500 + torch.rand(count, generator=generator) * 3000
    evaluation = cocoeval.COCOeval.__new__(cocoeval.COCOeval)
    evaluation.sigmas, evaluation.use_area = np.array(COCO_SIGMAS), True
    evaluation.score_key = "score"
    evaluation.params = SimpleNamespace(iouType="keypoints", maxDets=[count])
    expected = []
    for one in range(count):
        gold = {"keypoints": targets[one].flatten().tolist(), "bbox": [0, 0, 100, 100], "area": areas[one].item()}
        ours = torch.cat([outputs[one], torch.ones(joints, 1)], -1).flatten().tolist()
        evaluation._gts, evaluation._dts = {(1, 1): [gold]}, {(1, 1): [{"keypoints": ours, "score": 1.0}]}
        expected.append(float(evaluation.computeOks(1, 1)[0, 0]))
    result = oks(outputs[:, None], targets[:, None], areas[:, None])
    torch.testing.assert_close(result, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    together = oks(outputs[None], targets[None], areas[None])
    torch.testing.assert_close(together, torch.tensor([sum(expected) / count]), rtol=1e-5, atol=1e-6)
    targets[0, :, 2] = 0
    others = oks(outputs[None], targets[None], areas[None])  # a person without a visible joint is left out
    torch.testing.assert_close(others, torch.tensor([sum(expected[1:]) / (count - 1)]), rtol=1e-5, atol=1e-6)
