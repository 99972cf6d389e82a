"""`python -m net2net` is the command `net2net`."""

import sys

from net2net.cli import main

sys.exit(main())
