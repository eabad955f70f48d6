"""Which devices a process can see: CUDA_VISIBLE_DEVICES, by index, by UUID, by MIG instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .driver import Device


def visible(devices: Sequence[Device], environ: Mapping[str, str]) -> tuple[Device, ...]:
    """The devices that a process with this environment sees, in its order; all where the variable is unset.

    As in CUDA, the list ends at the first entry that names no device, and one device named twice hides all. Indices
    are the driver's; where unlike GPUs are mixed and CUDA_DEVICE_ORDER is not PCI_BUS_ID, CUDA numbers them by its
    own guess of their speed, so that every device counts as visible.
    """
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return tuple(devices)
    entries = [entry.strip() for entry in chosen.split(",")]
    if _guessed(devices, environ) and any(entry.isdigit() for entry in entries):
        return tuple(devices)
    found: list[Device] = []
    for entry in entries:
        device = _named(devices, entry)
        if device is None:
            break
        if device in found:
            return ()
        found.append(device)
    return tuple(found)


def _guessed(devices: Sequence[Device], environ: Mapping[str, str]) -> bool:
    return len({device.name for device in devices}) > 1 and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"


def _named(devices: Sequence[Device], entry: str) -> Device | None:
    """The device of this entry: an index, or the beginning of one UUID; a divided GPU shows its first instance."""
    if entry.isdigit():
        matching = [device for device in devices if device.index == int(entry)]
        return matching[0] if matching else None
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    own = [device for device in devices if device.uuid.startswith(entry)]
    if len(own) == 1:
        return own[0]
    below = [device for device in devices if device.parent is not None and device.parent.startswith(entry)]
    return below[0] if not own and len({device.parent for device in below}) == 1 else None
