"""Methods: a critic + an objective (+ a weight, + a regulariser), as rows of one table."""

from mi_align.methods.arrangements import *
from mi_align.methods.method import *
from mi_align.methods.parts import *
from mi_align.methods.table import *
