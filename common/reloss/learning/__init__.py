"""Learning a surrogate: the prediction bank, items, the objective, and the fit. `options` imports no torch."""

from typing import TYPE_CHECKING

from reloss.learning.options import LearnOptions
from reloss.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from reloss.learning.bank import PredictionBank
    from reloss.learning.fit import FitResult, fit_surrogate

__all__ = ["FitResult", "LearnOptions", "PredictionBank", "fit_surrogate"]
__getattr__ = lazy_names(
    __name__,
    {
        "PredictionBank": "reloss.learning.bank",
        "FitResult": "reloss.learning.fit",
        "fit_surrogate": "reloss.learning.fit",
    },
)
