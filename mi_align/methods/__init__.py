"""Methods: a critic + an objective (+ a regulariser), as rows of one table."""

from mi_align.methods.method import *
from mi_align.methods.table import *
