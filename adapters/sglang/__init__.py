"""SGLang over HTTP, in the order in which it survives.

Source for everything here: sglang 0.5.23, measured on a real server.
"""

from .adapter import SGLangAdapter

__all__ = ["SGLangAdapter"]
