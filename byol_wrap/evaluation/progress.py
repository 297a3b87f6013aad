"""How good a backbone becomes on the way, by labelled images that training does not see."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from byol_wrap.evaluation.comparison import Verdict, verdict
from byol_wrap.evaluation.features import extract_features
from byol_wrap.evaluation.knn import knn_accuracy


class Progress:
    """Nearest neighbours while a learner trains, and at the end what training was worth.

    Args:
        learner: as for ``extract_features``.
        loader: makes an iterable of (images, labels) anew, in the same order each time. An image
            with a negative label does not count.
    """

    def __init__(self, learner: nn.Module, loader: Callable[[], Iterable[Any]]) -> None:
        self.learner, self.loader = learner, loader
        self.before: tuple[Tensor, Tensor] | None = None

    def begin(self) -> None:
        """Keep what the features are before training, unless a checkpoint has brought it."""
        self.before = self.before or self._features()

    def knn(self, k: int = 20) -> float:
        """The share of half of the images that the other half's labels tell, in [0, 1]."""
        features, labels = self._features()
        features, labels = features[labels >= 0], labels[labels >= 0]
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        known, asked = order.tensor_split(2)
        task = features[known], labels[known], features[asked], labels[asked]
        return knn_accuracy(*task, k=min(k, len(known)))

    def verdict(self) -> Verdict:
        """Is it better than at ``begin``?

        Raises:
            RuntimeError: before ``begin``.
            ValueError: too few labels; see ``byol_wrap.evaluation.verdict``.
        """
        if self.before is None:
            raise RuntimeError("Call begin() before training: there is nothing to compare with.")
        (old, labels), (new, others) = self.before, self._features()
        both = (labels >= 0) & (others >= 0)
        return verdict(old[both], new[both], labels[both])

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on needs: features and labels as they were at ``begin``."""
        return {"before": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what an earlier part of the run had."""
        self.before = state["before"]

    def _features(self) -> tuple[Tensor, Tensor]:
        features, labels = extract_features(self.learner, self.loader(), device="cpu")
        if not isinstance(labels, Tensor):
            raise TypeError("The loader should yield (images, labels) with labels as numbers.")
        return features, labels
