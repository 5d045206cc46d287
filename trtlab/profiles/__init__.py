"""Optimization profiles: the sizes an engine is built for, checked against the model before TensorRT sees them."""

from __future__ import annotations

from trtlab.profiles.checking import check
from trtlab.profiles.guessing import guess
from trtlab.profiles.suggesting import Suggestion, suggest
from trtlab.shapes import Finding, Findings, Profile, Range, Shape, Shapes, check_profiles, read_shapes
