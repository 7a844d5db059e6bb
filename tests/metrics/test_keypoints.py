"""Keypoint metrics equal mmpose, xtcocotools and their definitions, and define every edge case."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reloss.metrics import COCO_SIGMAS, decode_heatmaps, heatmap_ap, heatmap_oks, heatmap_pck, oks, pck


def heatmaps(seed: int, *shape: int, levels: int = 5) -> Tensor:
    """Return heatmaps with many ties. Some have no positive value."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(levels, shape, generator=generator) / levels
    return values * (torch.rand(shape[:-2], generator=generator) < 0.8)[..., None, None]


def bumps(points: Tensor, height: int, width: int, sigma: float = 1.5) -> Tensor:
    """Return heatmaps [..., H, W] with a Gaussian bump around each point [..., 2]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    squares = (x - points[..., 0, None, None]).square() + (y - points[..., 1, None, None]).square()
    return (-squares / (2 * sigma**2)).exp()


def decode_one(heatmap: np.ndarray) -> tuple[float, float]:
    """Decode one heatmap by the definition."""
    height, width = heatmap.shape
    if heatmap.max() <= 0:
        return -1, -1
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    dx = heatmap[y, x + 1] - heatmap[y, x - 1] if 1 < x < width - 1 and y > 0 else 0
    dy = heatmap[y + 1, x] - heatmap[y - 1, x] if 1 < y < height - 1 and x > 0 else 0
    return x + 0.25 * np.sign(dx), y + 0.25 * np.sign(dy)


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def joints(seed: int, n: int, b: int, k: int = 17) -> tuple[Tensor, Tensor]:
    """Return coordinates near their targets. The share of visible joints varies."""
    generator = torch.Generator().manual_seed(seed)
    targets = 200 * torch.rand(n, b, k, 3, generator=generator)
    shares = torch.rand(n, b, 1, generator=generator)
    targets[..., 2] = (torch.rand(n, b, k, generator=generator) < shares) * torch.randint(
        1, 3, (n, b, k), generator=generator
    )
    return targets[..., :2] + 10 * torch.randn(n, b, k, 2, generator=generator), targets


class TestDecodeHeatmaps:
    @pytest.mark.parametrize("shape", [(4, 64, 12, 9), (300, 5, 4), (100, 3, 3), (50, 1, 1), (50, 2, 6), (50, 6, 1)])
    @pytest.mark.parametrize("levels", [2, 4, 1000])
    def test_equals_its_definition(self, shape, levels):
        maps = heatmaps(0, *shape, levels=levels)
        expected = [decode_one(heatmap) for heatmap in maps.flatten(0, -3).numpy()]
        points = decode_heatmaps(maps)
        assert points.dtype == torch.float32
        assert points.shape == (*shape[:-2], 2)
        assert points.flatten(0, -2).tolist() == [list(point) for point in expected]

    @pytest.mark.parametrize("shape", [(64, 12, 9), (300, 5, 4), (17, 64, 48)])
    def test_equals_mmpose(self, shape):
        codec = pytest.importorskip("mmpose.codecs", reason="mmpose is not installed").MSRAHeatmap
        height, width = shape[-2:]
        codec = codec(input_size=(width, height), heatmap_size=(width, height), sigma=2)
        for maps in (
            heatmaps(1, *shape),
            bumps(uniform(shape[0], 2) * torch.tensor([width, height]), height, width),
        ):
            expected, _ = codec.decode(maps.numpy())
            assert decode_heatmaps(maps).tolist() == expected.reshape(-1, 2).tolist()

    def test_refinement_locates_a_bump_to_a_quarter_pixel(self):
        points = 3 + torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([10, 14])
        maps = bumps(points, 20, 16)
        refined_error = (decode_heatmaps(maps) - points).abs()
        error = (decode_heatmaps(maps, refine=False) - points).abs()
        assert refined_error.max() <= 0.25 + 1e-5
        assert 0.4 < error.max() <= 0.5 + 1e-5
        assert refined_error.mean() < 0.6 * error.mean()

    def test_heatmaps_without_a_peak(self):
        assert decode_heatmaps(torch.zeros(2, 5, 5)).tolist() == [[-1, -1], [-1, -1]]
        assert decode_heatmaps(-uniform(5, 5)).tolist() == [-1, -1]
        assert decode_heatmaps(torch.full((5, 5), torch.nan)).tolist() == [-1, -1]
        assert decode_heatmaps(torch.ones(5, 5)).tolist() == [0, 0]

    @pytest.mark.parametrize("shape", [(), (5,), (2, 0, 5), (2, 5, 0)])
    def test_shapes_must_agree(self, shape):
        with pytest.raises(ValueError, match=r"expected heatmaps \[\.\.\., H, W\].*not \["):
            decode_heatmaps(torch.zeros(shape))


class TestPck:
    @pytest.mark.parametrize("threshold", [0.05, 0.2])
    def test_equals_its_definition(self, threshold):
        outputs, targets = joints(0, 20, 8)
        norm = 50 + 100 * uniform(20, 8, 2)
        expected = []
        for o, t, scale in zip(outputs.numpy(), targets.numpy(), norm.numpy(), strict=True):
            distances = np.linalg.norm((o - t[..., :2]) / scale[:, None], axis=-1)
            expected.append((distances[t[..., 2] > 0] < threshold).mean())
        assert 0 < min(expected) < max(expected) < 1
        assert pck(outputs, targets, threshold=threshold, norm=norm).tolist() == pytest.approx(expected, abs=1e-6)

    def test_equals_mmpose(self):
        functional = pytest.importorskip("mmpose.evaluation.functional", reason="mmpose is not installed")
        outputs, targets = joints(0, 20, 8)
        norm = (60 + 100 * uniform(20, 8, 2)) * (uniform(20, 8, 1) < 0.9)
        expected = []
        for o, t, scale in zip(outputs.numpy(), targets.numpy(), norm.numpy(), strict=True):
            visible = t[..., 2] > 0
            per_joint, _, _ = functional.keypoint_pck_accuracy(o, t[..., :2], visible, 0.1, scale.copy())
            counts = (visible & (scale > 0).all(-1, keepdims=True)).sum(
                0
            )  # joints weighted by how often they are visible
            expected.append((per_joint * counts).sum() / counts.sum())
        assert pck(outputs, targets, threshold=0.1, norm=norm).tolist() == pytest.approx(expected, abs=1e-6)

    def test_by_hand(self):
        targets = torch.tensor([[0, 0, 1], [0, 0, 2], [0, 0, 0], [0, 0, 1.0]])[None, None]
        outputs = torch.tensor([[3, 4], [0, 4.9], [0, 0], [9, 9.0]])[None, None]  # 5, 4.9, not visible, 12.7 away
        assert pck(outputs, targets, threshold=0.5, norm=torch.tensor([[10.0]])).item() == pytest.approx(1 / 3)
        assert pck(outputs, targets, threshold=0.6, norm=torch.tensor([[10.0]])).item() == pytest.approx(2 / 3)
        wide = torch.tensor([[[1e6, 10.0]]])  # only y counts: 4, 4.9, 9
        assert pck(outputs, targets, threshold=0.5, norm=wide).item() == pytest.approx(2 / 3)

    def test_no_visible_joint_scores_zero_and_an_example_without_a_norm_is_skipped(self):
        outputs, targets = joints(0, 1, 4)
        hidden = targets * torch.tensor([1, 1, 0])
        norm = torch.full((1, 4), 100.0)
        assert pck(outputs, hidden, threshold=1, norm=norm).item() == 0
        norm[0, :2] = torch.tensor([0.0, -1])
        expected = pck(outputs[:, 2:], targets[:, 2:], threshold=0.1, norm=norm[:, 2:])
        assert torch.equal(pck(outputs, targets, threshold=0.1, norm=norm), expected)
        targets[..., :2] = targets[..., :2].where(targets[..., 2:] > 0, torch.nan)  # data sets mark unknown joints so
        assert torch.equal(pck(outputs, targets, threshold=0.1, norm=norm), expected)

    @pytest.mark.parametrize("norm", [(2,), (2, 3), (2, 4, 3), (2, 4, 5, 2)])
    def test_the_shape_of_norm_must_agree(self, norm):
        with pytest.raises(ValueError, match=r"norm \[N, B, 2\]"):
            pck(torch.zeros(2, 4, 5, 2), torch.zeros(2, 4, 5, 3), threshold=0.1, norm=torch.ones(norm))

    def test_shapes_must_agree(self):
        for targets in ((2, 4, 5, 2), (2, 4, 6, 3), (2, 5, 3)):
            with pytest.raises(ValueError, match=r"expected outputs \[N, B, K, 2\] and targets \[N, B, K, 3\]"):
                pck(torch.zeros(2, 4, 5, 2), torch.zeros(targets), threshold=0.1, norm=torch.ones(2, 4))


class TestHeatmapPck:
    def maps(self, seed: int = 0, n: int = 10, b: int = 6, k: int = 5) -> tuple[Tensor, Tensor]:
        """Return heatmaps 24 high and 16 wide. The outputs are slightly shifted; some outputs and targets are empty."""
        generator = torch.Generator().manual_seed(seed)
        points = torch.rand(n, b, k, 2, generator=generator) * torch.tensor([16, 24])
        offsets = 1.5 * torch.randn(n, b, k, 2, generator=generator)
        filled = (torch.rand(2, n, b, k, 1, 1, generator=generator) < 0.85).float()
        return bumps(points + offsets, 24, 16) * filled[0], bumps(points, 24, 16) * filled[1]

    @pytest.mark.parametrize("threshold", [0.05, 0.1])
    def test_equals_its_definition(self, threshold):
        outputs, targets = self.maps()
        expected = []
        for item in zip(outputs.flatten(1, 2).numpy(), targets.flatten(1, 2).numpy(), strict=True):
            correct = []
            for output, target in zip(*item, strict=True):
                if target.max() > 0:
                    y, x = np.unravel_index(output.argmax(), output.shape) if output.max() > 0 else (-1, -1)
                    gold_y, gold_x = np.unravel_index(target.argmax(), target.shape)
                    correct.append(np.hypot((x - gold_x) / 16, (y - gold_y) / 24) < threshold)
            expected.append(np.mean(correct))
        assert 0 < min(expected) < max(expected) < 1
        assert heatmap_pck(outputs, targets, threshold=threshold).tolist() == pytest.approx(expected, abs=1e-6)

    def test_equals_mmpose(self):
        functional = pytest.importorskip("mmpose.evaluation.functional", reason="mmpose is not installed")
        outputs, targets = self.maps()
        expected = []
        for o, t in zip(outputs.numpy(), targets.numpy(), strict=True):
            visible = t.max((-2, -1)) > 0
            size = np.tile(np.array([[16.0, 24.0]]), (len(o), 1))
            per_joint, _, _ = functional.pose_pck_accuracy(o, t, visible, 0.05, size)
            expected.append((per_joint * visible.sum(0)).sum() / visible.sum())
        assert heatmap_pck(outputs, targets).tolist() == pytest.approx(expected, abs=1e-6)

    def test_edge_cases(self):
        outputs, targets = self.maps()
        assert heatmap_pck(targets, targets).tolist() == [1] * 10
        assert heatmap_pck(outputs, targets * 0).tolist() == [0] * 10
        assert heatmap_pck(outputs * 0, targets).max() < 0.1  # (-1, -1) is close to the corner only
        assert heatmap_pck(outputs[:0], targets[:0]).shape == (0,)

    @given(st.integers(0, 10_000))
    @settings(max_examples=25, deadline=None)
    def test_values_are_in_range_rise_with_the_threshold_and_ignore_the_order_of_examples(self, seed):
        outputs, targets = self.maps(seed, 2, 4, 3)
        order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
        values, larger_values = heatmap_pck(outputs, targets), heatmap_pck(outputs, targets, threshold=0.2)
        assert values.dtype == torch.float32
        assert values.min() >= 0
        assert (values <= larger_values).all()
        assert larger_values.max() <= 1
        assert torch.equal(heatmap_pck(outputs[:, order], targets[:, order]), values)
        assert torch.equal(heatmap_pck(3 * outputs.double(), targets), values)

    @pytest.mark.parametrize("targets", [(2, 3, 4, 8, 5), (2, 3, 4, 5), (2, 3, 5, 8, 6), (3, 3, 4, 8, 6)])
    def test_shapes_must_agree(self, targets):
        with pytest.raises(ValueError, match=r"expected outputs \[N, B, K, H, W\]"):
            heatmap_pck(torch.zeros(2, 3, 4, 8, 6), torch.zeros(targets))


class TestOks:
    def test_equals_xtcocotools(self):
        cocoeval = pytest.importorskip("xtcocotools.cocoeval", reason="xtcocotools is not installed")
        outputs, targets = joints(0, 25, 6)
        areas = 10_000 * uniform(25, 6) ** 2
        areas[0, 0] = 0
        outputs[0, 0, 0] = targets[0, 0, 0, :2]
        coco = cocoeval.COCOeval(iouType="keypoints", sigmas=np.array(COCO_SIGMAS))
        expected = []
        for item in zip(outputs.double(), targets.double(), areas.double(), strict=True):
            values = []
            for output, target, area in zip(*item, strict=True):
                scored = torch.cat([output, torch.ones(17, 1)], -1).flatten().numpy()
                gold = {"keypoints": target.flatten().numpy(), "bbox": [0, 0, 1, 1], "area": area.item()}
                coco._gts, coco._dts = {(0, 0): [gold]}, {(0, 0): [{"keypoints": scored, "score": 1.0}]}
                if (target[:, 2] > 0).any():  # without a visible joint, COCO measures the distance to the box
                    values.append(coco.computeOks(0, 0).item())
            expected.append(np.mean(values))
        assert 0.05 < min(expected) < max(expected) < 0.95
        assert oks(outputs, targets, areas).tolist() == pytest.approx(expected, abs=1e-6)

    def test_sigmas_equal_xtcocotools(self):
        cocoeval = pytest.importorskip("xtcocotools.cocoeval", reason="xtcocotools is not installed")
        assert cocoeval.COCOeval(iouType="keypoints").sigmas.tolist() == pytest.approx(list(COCO_SIGMAS))

    def test_by_hand(self):
        targets = torch.tensor([[[5, 5, 2], [5, 5, 1], [5, 5, 0]]])[None].float()
        outputs = torch.tensor([[[5, 5], [8, 9], [99, 99]]])[None].float()
        # exp(-25 / (2 * 50 * (2 * 0.25)^2)) = exp(-1)
        expected = (1 + np.exp(-1)) / 2
        areas = torch.tensor([[50.0]])
        assert oks(outputs, targets, areas, sigmas=[0.1, 0.25, 0.1]).item() == pytest.approx(expected)
        assert oks(outputs, targets, areas, torch.tensor([0.1, 0.25, 0.1])).item() == pytest.approx(expected)
        with_hidden = torch.cat([targets, targets * torch.tensor([torch.nan, 1, 0])], 1)
        values = oks(outputs.repeat(1, 2, 1, 1), with_hidden, areas.repeat(1, 2), [0.1, 0.25, 0.1])
        assert values.item() == pytest.approx(expected)  # an example without a visible joint is skipped

    def test_edge_cases(self):
        outputs, targets = joints(1, 3, 4)
        areas = torch.full((3, 4), 100.0)
        assert oks(outputs, targets * torch.tensor([1, 1, 0]), areas).tolist() == [0, 0, 0]
        targets[..., 2] = 1
        assert oks(targets[..., :2], targets, areas).tolist() == [1, 1, 1]
        assert oks(targets[..., :2], targets, 0 * areas).tolist() == [1, 1, 1]
        assert oks(targets[..., :2] + 1, targets, 0 * areas).tolist() == [0, 0, 0]
        assert oks(outputs[:0], targets[:0], areas[:0]).shape == (0,)

    @given(st.integers(0, 10_000))
    @settings(max_examples=25, deadline=None)
    def test_values_are_in_range_rise_with_the_area_and_ignore_the_order_of_examples(self, seed):
        outputs, targets = joints(seed, 2, 5)
        areas = 5_000 * uniform(2, 5)
        order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
        values = oks(outputs, targets, areas)
        assert values.dtype == torch.float32
        assert 0 <= values.min() <= values.max() <= 1
        assert (values <= oks(outputs, targets, 2 * areas)).all()
        shuffled = oks(outputs[:, order], targets[:, order], areas[:, order])
        assert shuffled.tolist() == pytest.approx(values.tolist(), abs=1e-6)

    def test_shapes_must_agree(self):
        outputs, targets, areas = torch.zeros(2, 4, 17, 2), torch.zeros(2, 4, 17, 3), torch.ones(2, 4)
        for arguments in (
            (outputs[:, :, :5], targets, areas),
            (outputs, targets[..., :2], areas),
            (outputs, targets, areas[0]),
        ):
            with pytest.raises(ValueError, match=r"areas \[N, B\] and sigmas \[K\]"):
                oks(*arguments)
        with pytest.raises(ValueError, match=r"\[2, 4, 17, 2\], \[2, 4, 17, 3\], \[2, 4\], \[3\]"):
            oks(outputs, targets, areas, [0.1, 0.1, 0.1])


def test_heatmap_oks_equals_oks_of_the_decoded_joints():
    points = uniform(2, 3, 17, 2) * torch.tensor([44.0, 60.0]) + 2
    outputs, targets = bumps(points + 2 * uniform(2, 3, 17, 2), 64, 48), bumps(points, 64, 48)
    targets[0, 1, 4] = 0
    joints = torch.cat([decode_heatmaps(targets), (targets.amax((-2, -1)) > 0)[..., None]], -1)
    area = 0.53 * (64 / 1.25) * (48 / 1.25)
    expected = oks(decode_heatmaps(outputs), joints, torch.full((2, 3), area))
    assert_close(heatmap_oks(outputs, targets), expected)
    assert (expected < 0.99).all()
    assert heatmap_oks(targets, targets).tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="17"):
        heatmap_oks(outputs[:, :, :14], targets[:, :, :14])


class TestHeatmapAP:
    """COCO's average precision of persons who are each alone in an image."""

    @staticmethod
    def persons(seed, b=12, n=1):
        """Heatmaps of one pixel for each joint, the further from the target the later the person; some are hidden."""
        generator = torch.Generator().manual_seed(seed)
        targets = torch.zeros(n, b, 17, 32, 24)
        outputs = torch.zeros(n, b, 17, 32, 24)
        shifts = torch.randint(-2, 3, (n, b, 17, 2), generator=generator) * (torch.rand(n, b, 1, 1) < 0.8)
        for index in np.ndindex(n, b, 17):
            y, x = torch.randint(4, 20, (2,), generator=generator).tolist()
            dy, dx = shifts[index].tolist()
            targets[(*index, y, x)] = 1
            outputs[(*index, y + dy, x + dx)] = torch.rand((), generator=generator) * 0.9 + 0.05
        targets[torch.rand(n, b, 17, generator=generator) < 0.2] = 0
        return outputs, targets

    @staticmethod
    def evaluate(outputs, targets):
        """AP by xtcocotools."""
        from xtcocotools.coco import COCO
        from xtcocotools.cocoeval import COCOeval

        area = 0.53 * 32 * 24 / 1.25**2
        labels, detections = [], []
        for number, (output, target) in enumerate(zip(outputs, targets, strict=True), 1):
            seen = target.amax((-2, -1)) > 0
            truth = torch.cat([decode_heatmaps(target), 2.0 * seen[:, None]], -1) * seen[:, None]
            box = {"image_id": number, "category_id": 1, "bbox": [0, 0, 24, 32], "area": area, "iscrowd": 0}
            labels.append(
                {**box, "id": number, "keypoints": truth.flatten().tolist(), "num_keypoints": int(seen.sum())}
            )
            points = torch.cat([decode_heatmaps(output), torch.ones(17, 1)], -1)
            largest = output.amax((-2, -1))
            sure = largest[largest > 0.2]
            score = float(sure.mean()) if len(sure) else 0.0
            detections.append(
                {"image_id": number, "category_id": 1, "keypoints": points.flatten().tolist(), "score": score}
            )
        coco = COCO()
        coco.dataset = {
            "images": [{"id": label["id"]} for label in labels],
            "annotations": labels,
            "categories": [{"id": 1, "name": "person"}],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "keypoints", np.array(COCO_SIGMAS), use_area=True)
        evaluation.evaluate()
        evaluation.accumulate()
        return float(evaluation.eval["precision"][:, :, 0, 0, 0].mean())

    @pytest.mark.parametrize("seed", range(4))
    def test_it_is_cocos(self, seed, capsys):
        outputs, targets = self.persons(seed)
        if seed == 3:
            targets[0, 2:5] = 0
        assert heatmap_ap(outputs, targets).item() == pytest.approx(self.evaluate(outputs[0], targets[0]), abs=1e-6)

    def test_it_is_1_for_the_targets_and_0_without_visible_joints(self):
        outputs, targets = self.persons(0, n=2)
        assert heatmap_ap(targets, targets).tolist() == [1, 1]
        assert heatmap_ap(outputs, 0 * targets).tolist() == [0, 0]
        assert heatmap_ap(outputs[:0], targets[:0]).shape == (0,)
