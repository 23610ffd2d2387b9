"""`python -m dsas_diffusion.cli`, where the console script is not on the path."""

import sys

from . import main

sys.exit(main())
