"""What does a model compute, and how far is that from another one? Run it, compare it tensor by tensor, count hits."""

from __future__ import annotations

from trtlab.numerics.comparison import Comparison, TensorDifference, compare, cosine, sqnr
from trtlab.numerics.running import run, run_batches
from trtlab.numerics.scoring import Accuracy, accuracy, score

__all__ = [
    "Accuracy", "Comparison", "TensorDifference", "accuracy", "compare", "cosine", "run", "run_batches", "score",
    "sqnr",
]  # fmt: skip
