"""Drives a tokenspeed server over HTTP, through its control server (`--control-port`, one above the main port).

Source for every claim about tokenspeed here, unless it says otherwise: tokenspeed 0.1.1, read; of its control routes
(runtime/entrypoints/sglang_compat_http.py), its controllers (runtime/engine/pause.py, memory_occupation.py) and its
scheduler (tokenspeed-scheduler 0.1.42) also run, without a model, by tests/real/run_tokenspeed.py.
"""

from .adapter import TokenspeedAdapter

__all__ = ["TokenspeedAdapter"]
