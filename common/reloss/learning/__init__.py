"""Fitting a surrogate: the prediction bank, items and their sources, the objective, and the fit."""

from typing import TYPE_CHECKING

from reloss.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from reloss.learning.bank import PredictionBank
    from reloss.learning.fit import FitResult, fit_surrogate
    from reloss.learning.options import LearnOptions

__all__ = ["FitResult", "LearnOptions", "PredictionBank", "fit_surrogate"]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "FitResult": "reloss.learning.fit",
        "LearnOptions": "reloss.learning.options",
        "PredictionBank": "reloss.learning.bank",
        "fit_surrogate": "reloss.learning.fit",
    },
)
