"""What is known of engines, kept across processes."""

from .sqlite import Memory, Overtaken, Store, default_path

__all__ = ["Memory", "Overtaken", "Store", "default_path"]
