"""Which devices a process sees: CUDA_VISIBLE_DEVICES by index, by UUID and by MIG instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .driver import Device


def visible_devices(devices: Sequence[Device], environ: Mapping[str, str]) -> tuple[Device, ...]:
    """Returns the devices that a process with this environment sees, in its order; all where the variable is unset.

    As in CUDA, the list ends at the first entry that names no device, and naming one device twice hides all. Indices
    are the driver's. Where unlike GPUs are mixed and CUDA_DEVICE_ORDER is not PCI_BUS_ID, CUDA orders them by its own
    estimate of their speed: an index then does not say which GPU it is, and every device counts as visible.
    """
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return tuple(devices)
    entries = [entry.strip() for entry in listed.split(",")]
    if _ordered_by_speed(devices, environ) and any(entry.isdigit() for entry in entries):
        return tuple(devices)
    found: list[Device] = []
    for entry in entries:
        device = _device_of(entry, devices)
        if device is None:
            break
        if device in found:
            return ()
        found.append(device)
    return tuple(found)


def _ordered_by_speed(devices: Sequence[Device], environ: Mapping[str, str]) -> bool:
    return len({device.name for device in devices}) > 1 and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"


def _device_of(entry: str, devices: Sequence[Device]) -> Device | None:
    """The device of this entry: an index, or the beginning of exactly one UUID.

    Of a GPU that is divided into MIG instances it is the first instance.
    """
    if entry.isdigit():
        matching = [device for device in devices if device.index == int(entry)]
        return matching[0] if matching else None
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    own = [device for device in devices if device.uuid.startswith(entry)]
    if len(own) == 1:
        return own[0]
    instances = [device for device in devices if device.parent is not None and device.parent.startswith(entry)]
    return instances[0] if not own and len({device.parent for device in instances}) == 1 else None
