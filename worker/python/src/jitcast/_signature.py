"""Signatures as text, `(ptr, i64) -> f64`, to prototypes of ctypes."""

import ctypes

TYPES = {
    "i8": ctypes.c_int8,
    "i16": ctypes.c_int16,
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "u8": ctypes.c_uint8,
    "u16": ctypes.c_uint16,
    "u32": ctypes.c_uint32,
    "u64": ctypes.c_uint64,
    "ptr": ctypes.c_void_p,
    "f32": ctypes.c_float,
    "f64": ctypes.c_double,
}


def prototype(signature):
    """The type of functions of this signature, whose calls let other threads run."""
    before, arrow, result = signature.partition("->")
    arguments = before.strip()
    if not (arguments.startswith("(") and arguments.endswith(")")) or (arrow and not result.strip()):
        raise ValueError("`%s` is no signature: write it like `(ptr, i64) -> f64`" % signature)
    arguments = arguments[1:-1].strip()
    arguments = [_type(text) for text in arguments.split(",")] if arguments else []
    result = _type(result) if arrow else None
    return ctypes.CFUNCTYPE(result, *arguments)


def _type(text):
    try:
        return TYPES[text.strip()]
    except KeyError:
        known = ", ".join(TYPES)
        raise ValueError("`%s` is no type that can be passed: %s" % (text.strip(), known)) from None
