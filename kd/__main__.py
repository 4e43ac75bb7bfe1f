"""TODO"""

import sys

from kd.cli.main import main

sys.exit(main())
