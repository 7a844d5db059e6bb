"""Human pose estimation through mmpose."""

from tasks.pose.task import PoseTask

TASK = PoseTask()
