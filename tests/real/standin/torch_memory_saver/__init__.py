"""A stand-in for torch_memory_saver 0.0.10 that returns the pages of CPU tensors to the operating system.

The real package maps and unmaps GPU memory, and cannot be loaded without a GPU. This one has its Python API, and is
first on the module path of a server that runs on a CPU. There, `pause` returns the memory of everything that was
allocated in a `region` to the operating system, and `resume` makes it resident again. Contents are lost unless the
region has a backup. A call out of order exits the process, as with the real package.
"""

from .saver import TorchMemorySaver, configure_subprocess

__all__ = ["TorchMemorySaver", "configure_subprocess", "torch_memory_saver"]

torch_memory_saver = TorchMemorySaver()
