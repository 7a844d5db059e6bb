import numpy as np
import pytest
from mmengine.evaluator import Evaluator
from mmpose.registry import METRICS

from reloss_tasks.pose.mean_pose import score_mean_pose
from reloss_tasks.pose.scoring import TorsoPCK, record_names


def samples(count=6, joints=14):
    generator = np.random.default_rng(0)
    persons = []
    for number in range(count):
        points = generator.uniform(0, 100, (1, joints, 2))
        visible = (generator.random((1, joints)) < 0.8).astype(float)
        visible[0, 3] = number > 0  # of the first person, a hip is hidden
        visible[0, 8] = 1
        moved = points + generator.normal(0, 8, points.shape)
        persons.append(
            {
                "pred_instances": {"keypoints": moved},
                "gt_instances": {"keypoints": points, "keypoints_visible": visible},
            }
        )
    return persons


def test_torso_pck_is_the_share_of_joints_within_a_fraction_of_the_torso():
    metric = METRICS.build({"type": "mmpose.TorsoPCK", "threshold": 0.2, "torso": (8, 3)})
    assert isinstance(metric, TorsoPCK)
    persons = samples()
    metric.process([], persons[:4])
    metric.process([], persons[4:])
    right = total = 0
    for sample in persons[1:]:
        truth, visible = sample["gt_instances"]["keypoints"][0], sample["gt_instances"]["keypoints_visible"][0]
        torso = np.linalg.norm(truth[8] - truth[3])
        distances = np.linalg.norm(sample["pred_instances"]["keypoints"][0] - truth, axis=1)
        right += ((distances < 0.2 * torso) & (visible > 0)).sum()
        total += (visible > 0).sum()
    assert 0 < right < total
    assert metric.evaluate(6) == {"pck/PCK": pytest.approx(right / total)}


def test_metrics_get_the_names_of_records():
    scores = record_names({"coco/AP": 0.7, "coco/AP .5": 0.9, "coco/AP (M)": 0.6, "coco/AR .75": 0.8, "pck/PCK": 0.5})
    assert scores == {"AP": 0.7, "AP_50": 0.9, "AP_(M)": 0.6, "AR_75": 0.8, "PCK": 0.5}


class Persons:
    """The used part of the interface of mmpose's data sets."""

    def __init__(self, persons):
        self.persons = persons

    def __len__(self):
        return len(self.persons)

    def get_data_info(self, index):
        return self.persons[index]


def test_the_mean_pose_is_placed_into_each_box():
    pose = np.random.default_rng(0).uniform(0.1, 0.9, (1, 14, 2))

    def person(x, y, width, height, moved=0.0, hidden=()):
        visible = np.ones((1, 14))
        visible[:, list(hidden)] = 0
        points = np.array([x, y]) + (pose + moved) * np.array([width, height])
        return {"bbox": np.array([[x, y, x + width, y + height]]), "keypoints": points, "keypoints_visible": visible}

    # The last joint of the third person is hidden and far away. It must not count.
    train = [person(0, 0, 50, 100, 0.1), person(7, 9, 80, 60, -0.1), person(3, 2, 40, 40, hidden=[13])]
    train[2]["keypoints"][:, 13] = 1e4
    same, far = person(30, 20, 90, 120), person(5, 5, 60, 60, moved=3.0)
    scores = score_mean_pose(Persons(train), Persons([same, far]), Evaluator([TorsoPCK()]))
    assert scores == {"pck/PCK": pytest.approx(0.5)}
