"""Human pose estimation through mmpose."""

from reloss_tasks.pose.task import PoseTask

TASK = PoseTask()
