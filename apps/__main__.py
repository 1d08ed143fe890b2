"""`python -m apps` is the `duologue` command, run from a checkout."""

import sys

from apps.cli import main

sys.exit(main())
