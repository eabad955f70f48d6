"""`python -m lifecycle.adapters.loopback` starts the loopback engine."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
