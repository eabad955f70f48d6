"""What is broken on purpose stands in tests/properties too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "properties"))
