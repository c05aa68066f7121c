"""``python -m fedge``, where the command itself is not on the path."""

import sys

from fedge.cli import main

sys.exit(main())
