"""Pinned memory: host memory that a GPU reads by itself, without a copy in between."""

import ctypes
import functools
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def pinned_buffer(size_bytes: int) -> npt.NDArray[np.uint8]:
    """Allocate flat memory, pinned if this process has CUDA and CUDA agrees; what is not pinned only travels slower.

    Args:
        size_bytes: Its size.
    """
    buffer = np.empty(size_bytes, np.uint8)
    library, address = _cuda(), ctypes.c_void_p(buffer.ctypes.data)
    if library is not None and library.cudaHostRegister(address, ctypes.c_size_t(size_bytes), 0) == 0:
        weakref.finalize(buffer, library.cudaHostUnregister, address)
    return buffer


@functools.cache
def _cuda() -> Any:
    """Find the CUDA library that the runtime has loaded into this process; None without one."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = line.partition("/")[2]
        if "libcudart" in path:
            return ctypes.CDLL(f"/{path}")
    return None
