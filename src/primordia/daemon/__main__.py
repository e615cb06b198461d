"""`python -m primordia.daemon NODE.JSON`, started by the node's supervisor."""

import sys

from primordia.daemon.main import main

sys.exit(main(sys.argv[1:]))
