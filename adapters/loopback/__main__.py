"""`python -m lifecycle.adapters.loopback` runs the engine."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
