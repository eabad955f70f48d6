"""A process that holds GPU memory by the CUDA driver alone; with `--depth N` its N-th descendant does.

It prints its pid, then reads commands from standard input, one a line: `alloc MIB`, `free`, `quit`. Each but `quit` is
answered with `ok`.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys


def hold(device: int) -> None:
    """Holds a CUDA context on the device, and allocates and frees memory in it, until `quit`."""
    cuda = ctypes.CDLL("libcuda.so.1")
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    check(cuda.cuInit(0))
    check(cuda.cuDeviceGet(ctypes.byref(handle), device))
    check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle))
    check(cuda.cuCtxSetCurrent(context))
    blocks: list[ctypes.c_uint64] = []
    print(os.getpid(), flush=True)
    for line in sys.stdin:
        word, *amount = line.split()
        if word == "quit":
            return
        if word == "alloc":
            blocks.append(ctypes.c_uint64())
            check(cuda.cuMemAlloc_v2(ctypes.byref(blocks[-1]), ctypes.c_size_t(int(amount[0]) << 20)))
        if word == "free":
            check(cuda.cuMemFree_v2(blocks.pop()))
        print("ok", flush=True)


def check(status: int) -> None:
    """Exits where the driver returned an error."""
    if status:
        sys.exit(f"the CUDA driver answered {status}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--device", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.depth:
        below = ["--depth", str(chosen.depth - 1), "--device", str(chosen.device)]
        sys.exit(subprocess.call([sys.executable, __file__, *below]))
    hold(chosen.device)
