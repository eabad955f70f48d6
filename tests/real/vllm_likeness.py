"""`python vllm_likeness.py REAL LOOPBACK`: as `likeness.py`, of what `vllm_record.py` left."""

from __future__ import annotations

import sys
from pathlib import Path

from likeness import Difference
from likeness import verdict as compared

DIFFERENCES = (
    Difference(
        "server_info: only the parts of the configuration that a driver reads",
        r"server_info(_json)?",
        r"\.(vllm_config|vllm_env|system_env)[\w.\[\]]*: only in (vllm|loopback)",
        "entrypoints/serve/dev/server_info/api_router.py, over config/vllm.py VllmConfig",
    ),
    Difference(
        "metrics: only what a driver can use of the scheduler, the front end and the sleep",
        r"metrics.*",
        r"\.[\w:]+: only in vllm",
        "v1/metrics/loggers.py PrometheusStatLogger",
    ),
)


def verdict(real: Path, ours: Path) -> tuple[list[str], bool]:
    """The lines to print, the summary last, and whether loopback is like vLLM."""
    return compared(real, ours, "vllm", DIFFERENCES)


if __name__ == "__main__":
    lines, alike = verdict(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(lines))
    sys.exit(not alike)
