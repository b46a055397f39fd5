"""The library of the C ABI, and its structs as jitcast.h has them."""

import ctypes
import ctypes.util
import functools
import os
from ctypes import POINTER, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p

ABI_VERSION = 1


class Import(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t),
        ("name", c_char_p),
        ("function", c_void_p),
        ("datum", c_void_p),
        ("signature", c_char_p),
    ]


class Options(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t),
        ("label", c_char_p),
        ("imports", POINTER(Import)),
        ("import_count", c_size_t),
        ("libraries", POINTER(c_char_p)),
        ("library_count", c_size_t),
        ("trusted_uids", POINTER(c_uint32)),
        ("trusted_uid_count", c_size_t),
        ("flags", c_uint32),
        ("reserved", c_uint32),
    ]


class Statistics(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t),
        ("number", c_uint64),
        ("base", c_uint64),
        ("applied", c_uint64),
        ("updates", c_uint64),
        ("resyncs", c_uint64),
        ("missing", c_uint64),
    ]


# What is used of jitcast.h: results and arguments.
FUNCTIONS = {
    "jitcast_abi_version": (c_uint32, []),
    "jitcast_attach_path": (c_int, [c_char_p, POINTER(Options), POINTER(c_void_p)]),
    "jitcast_attach_fd": (c_int, [c_int, POINTER(Options), POINTER(c_void_p)]),
    "jitcast_attach_name": (c_int, [c_char_p, POINTER(Options), POINTER(c_void_p)]),
    "jitcast_detach": (c_int, [c_void_p]),
    "jitcast_function": (c_int, [c_void_p, c_char_p, c_char_p, c_void_p, POINTER(c_void_p)]),
    "jitcast_handle_free": (None, [c_void_p]),
    "jitcast_ask": (c_int, [c_void_p, c_char_p, POINTER(c_void_p)]),
    "jitcast_request_is_ready": (c_bool, [c_void_p]),
    "jitcast_request_wait": (c_int, [c_void_p, c_uint64]),
    "jitcast_request_function": (c_int, [c_void_p, c_char_p, c_char_p, c_void_p, POINTER(c_void_p)]),
    "jitcast_request_free": (None, [c_void_p]),
    "jitcast_enter": (c_int, [c_void_p, c_void_p]),
    "jitcast_leave": (c_int, [c_void_p]),
    "jitcast_last_error": (c_char_p, []),
    "jitcast_fd": (c_int, [c_void_p]),
    "jitcast_tend": (c_int, [c_void_p]),
    "jitcast_is_connected": (c_bool, [c_void_p]),
    "jitcast_wait": (c_int, [c_void_p, c_uint64, c_uint64]),
    "jitcast_generation": (c_uint64, [c_void_p]),
    "jitcast_stats": (c_int, [c_void_p, POINTER(Statistics)]),
}


@functools.lru_cache(maxsize=None)
def library():
    """The library: what JITCAST_LIBRARY names, or else what the system finds."""
    soname = "libjitcast_worker.so.%d" % ABI_VERSION
    path = os.environ.get("JITCAST_LIBRARY") or ctypes.util.find_library("jitcast_worker") or soname
    try:
        found = ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(
            "%s: install it (make -C worker/capi install, then ldconfig), or set JITCAST_LIBRARY to its path" % error
        ) from error
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    version = found.jitcast_abi_version()
    if version != ABI_VERSION:
        raise ImportError("%s has version %d of the ABI, this needs %d" % (path, version, ABI_VERSION))
    return found
