"""A loss for a metric, in three lines: record predictions, learn a loss, train with it."""

from typing import TYPE_CHECKING

from reloss.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from reloss.metric_loss.compare import Comparison
    from reloss.metric_loss.kinds import KINDS
    from reloss.metric_loss.learn import learn_loss
    from reloss.metric_loss.loss import MetricLoss, load
    from reloss.metric_loss.recorder import Recorder
    from reloss.metric_loss.result import LearnedLoss
    from reloss.metric_loss.zoo import zoo_names

__all__ = ["KINDS", "Comparison", "LearnedLoss", "MetricLoss", "Recorder", "learn_loss", "load", "zoo_names"]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Comparison": "reloss.metric_loss.compare",
        "KINDS": "reloss.metric_loss.kinds",
        "LearnedLoss": "reloss.metric_loss.result",
        "MetricLoss": "reloss.metric_loss.loss",
        "Recorder": "reloss.metric_loss.recorder",
        "learn_loss": "reloss.metric_loss.learn",
        "load": "reloss.metric_loss.loss",
        "zoo_names": "reloss.metric_loss.zoo",
    },
)
