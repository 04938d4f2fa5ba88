"""`python -m dasnet_lightning`: the command line, as `dasnet`."""

import sys

from dasnet_lightning.cli.main import main

sys.exit(main())
