"""`python -m agent`: the same as `shoal-agent`."""

import sys

from agent.main import main

sys.exit(main())
