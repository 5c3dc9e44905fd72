"""`python -m tests.mutation`. A spawned process imports no package's `__main__`, so what it runs is in `runner`."""

import sys

from tests.mutation.runner import main

sys.exit(main())
