"""Importing this module raises MissingPackage where a package that the engine in this process needs is missing."""

from importlib import import_module

from .errors import MissingPackage

_NEEDED = "an engine in this process needs {}; pip install 'engine-lifecycle[torch]'"


def _require(package: str, attribute: str) -> None:
    """Raises MissingPackage where the package cannot be imported, or is only a folder of that name on the path."""
    try:
        found = import_module(package)
    except ModuleNotFoundError as missing:
        raise MissingPackage(_NEEDED.format(missing.name)) from missing
    if not hasattr(found, attribute):
        raise MissingPackage(_NEEDED.format(package))


_require("torch", "Tensor")
_require("safetensors", "safe_open")
