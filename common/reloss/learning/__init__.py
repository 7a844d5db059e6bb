"""Learning a surrogate: the prediction bank, items, the objective, and the fit."""

from reloss.learning.bank import PredictionBank
from reloss.learning.fit import FitResult, fit_surrogate
from reloss.learning.options import LearnOptions

__all__ = ["FitResult", "LearnOptions", "PredictionBank", "fit_surrogate"]
