"""What does a model compute, and how far is that from another one? Run it, compare it tensor by tensor, count hits."""

from trtlab.numerics.comparison import Accuracy, TensorDifference, accuracy, compare, cosine, score, sqnr
from trtlab.numerics.running import run, runner
