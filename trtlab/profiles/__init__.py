"""Optimization profiles: the sizes an engine is built for, checked against the model before TensorRT sees them."""

from trtlab.profiles.answers import OUTCOMES as OUTCOMES
from trtlab.profiles.answers import Answer as Answer
from trtlab.profiles.answers import answers as answers
from trtlab.profiles.check import check as check
from trtlab.profiles.findings import Finding as Finding
from trtlab.profiles.findings import Findings as Findings
from trtlab.profiles.inputs import check_profiles as check_profiles
from trtlab.profiles.shapes import Profile as Profile
from trtlab.profiles.shapes import Range as Range
from trtlab.profiles.shapes import Shape as Shape
from trtlab.profiles.shapes import Shapes as Shapes
from trtlab.profiles.shapes import read_shapes as read_shapes
from trtlab.profiles.suggest import Suggestion as Suggestion
from trtlab.profiles.suggest import suggest as suggest
from trtlab.profiles.sweep import sweep as sweep
