"""``python -m anem`` is the command ``anem``."""

import sys

from anem.cli import main

sys.exit(main())
