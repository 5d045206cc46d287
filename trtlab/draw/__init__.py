"""Every picture that chapters share, in one palette."""

from trtlab.draw.agreement import agreement
from trtlab.draw.bars import bars
from trtlab.draw.before_after import before_after
from trtlab.draw.frame import Picture
from trtlab.draw.fusion import fusion
from trtlab.draw.memory import memory
from trtlab.draw.palette import KINDS
