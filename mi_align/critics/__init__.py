"""Critics: what turns a prompt and a response into one logit.

The network critics for real-valued data live in `mi_align.critics.networks`, which needs Flax and is imported by name.
"""

from mi_align.critics.candidates import *
from mi_align.critics.divergences import *
from mi_align.critics.policy import *
from mi_align.critics.reward_head import *
