"""`python -m tokendeep` is the command `tokendeep`."""

import sys

from .cli import main

sys.exit(main())
