"""`python -m primordia.supervisor NODE.JSON`."""

import sys

from primordia.supervisor.main import main

sys.exit(main(sys.argv[1:]))
