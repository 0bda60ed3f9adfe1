"""`python -m tokendeep` is the command `tokendeep`."""

import sys

from tokendeep.cli import main

sys.exit(main())
