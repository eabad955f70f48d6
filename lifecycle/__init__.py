"""The offload and onload lifecycle of inference engines: a state is a claim, entered only on evidence.

async with Fleet.connect(["sglang://127.0.0.1:30000"]) as fleet:
    async with fleet.offloaded(weights=FromDisk(path, version="step-12")):
        train()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fleet.public import *  # noqa: F403 - the same names, for tools that only read
    from .fleet.public import __all__ as __all__


def __getattr__(name: str) -> Any:
    """A public name; the first one that is asked for imports them all.

    A process that needs only a part of the package, as an engine does, imports that part alone.
    """
    public = import_module(".fleet.public", __name__)
    if name != "__all__" and name not in public.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals().update({each: getattr(public, each) for each in ("__all__", *public.__all__)})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module(".fleet.public", __name__).__all__})
