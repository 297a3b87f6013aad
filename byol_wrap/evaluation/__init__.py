"""What a representation is worth, and whether its training is sound."""

from byol_wrap.evaluation.comparison import Verdict, verdict
from byol_wrap.evaluation.features import extract_features
from byol_wrap.evaluation.knn import knn_accuracy
from byol_wrap.evaluation.linear import linear_probe, linear_probe_sgd
from byol_wrap.evaluation.progress import Progress

__all__ = [
    "Progress",
    "Verdict",
    "extract_features",
    "knn_accuracy",
    "linear_probe",
    "linear_probe_sgd",
    "verdict",
]
