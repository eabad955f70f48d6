"""A stand-in for torch_memory_saver 0.0.10 that gives the pages of CPU tensors back to the operating system.

The real one maps and unmaps GPU memory and cannot be loaded without a GPU. This one has its Python API, is found first
on the module path of a server that runs on a CPU, and does there what the real one does: the memory of everything that
was allocated inside a `region` leaves the process on `pause`, is back on `resume`, and comes back without its contents
unless the region asked for a backup. A call out of order ends the process, as with the real one.
"""

from .saver import TorchMemorySaver, configure_subprocess

__all__ = ["TorchMemorySaver", "configure_subprocess", "torch_memory_saver"]

torch_memory_saver = TorchMemorySaver()
