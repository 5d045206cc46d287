"""Measured runs, layer by layer: NVIDIA's own with their source, and yours from the files that trtexec exports."""

from trtlab.recordings.pairs import compare
from trtlab.recordings.recorded import Recording, TimedLayer, recording, recordings
from trtlab.recordings.trtexec import read_trtexec

__all__ = ["Recording", "TimedLayer", "compare", "read_trtexec", "recording", "recordings"]
