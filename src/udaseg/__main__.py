"""`python -m udaseg` is `udaseg`."""

import sys

from udaseg.cli import main

sys.exit(main())
