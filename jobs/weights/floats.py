"""The three float formats that weights are stored in, and rounding to them; numpy alone."""

from typing import TYPE_CHECKING

from jobs.common.errors import JobError

if TYPE_CHECKING:
    import numpy as np

FLOATS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}  # torch's names, and safetensors'
DROPPED = {"F16": 13, "BF16": 16}  # bits of float32's significand that are rounded away


def decoded(raw: bytes, dtype: str, name: str) -> "np.ndarray":
    """`raw` as float32; all three formats convert without loss."""
    import numpy as np

    held = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    if dtype not in held:
        raise JobError(f"{name}: is stored as {dtype}; only F32, F16 and BF16 can be added to or converted")
    return widened(np.frombuffer(raw, held[dtype]))


def widened(stored: "np.ndarray") -> "np.ndarray":
    """float32 or float16 values, or bfloat16's bits as uint16, as float32."""
    import numpy as np

    if stored.dtype != np.uint16:
        return stored.astype(np.float32, copy=False)
    wide = stored.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def encoded(values: "np.ndarray", dtype: str, noise: "np.ndarray | None" = None) -> tuple["np.ndarray", "np.ndarray"]:
    """float64 or float32 `values` rounded once to `dtype`: to nearest even, or BF16 by `noise`, a uniform uint16 each.

    Returns the rounded values in float32, and as they are stored: float32, float16, or uint16 holding bfloat16's bits,
    all of the same shape. A value too large for F16 is 65,536 or more in the first and inf in the second.

    numpy's own conversions to and from float16 go element by element; integer arithmetic takes many at once.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(values, np.float32)
    if dtype == "F32":
        return single, single
    bits = single.view(np.uint32)
    dropped = DROPPED[dtype]
    half_a_step = np.uint32(1 << dropped - 1)
    if noise is not None:
        up = noise.astype(np.uint32)
        up += bits
    elif values.dtype == np.float64:
        settle_ties(bits, values, dropped)
        up = bits + half_a_step
    else:  # half of the last kept bit, and that bit itself to break ties to even
        up = bits >> np.uint32(dropped)
        up &= np.uint32(1)
        up += half_a_step - np.uint32(1)
        up += bits
    up &= np.uint32(0xFFFFFFFF ^ ((1 << dropped) - 1))
    rounded = up.view(np.float32)
    if dtype == "BF16":
        return rounded, (up >> np.uint32(16)).astype(np.uint16)
    half = (up >> np.uint32(13)).astype(np.uint16)
    half -= np.uint16(112 << 10 & 0xFFFF)  # the biases differ by 112
    half &= np.uint16(0x7FFF)
    top = (up >> np.uint32(16)).astype(np.uint16)
    half |= top & np.uint16(0x8000)
    stored = half.view(np.float16)
    odd = beyond_float16(top)
    with np.errstate(over="ignore"):
        stored.reshape(-1)[odd] = values.reshape(-1)[odd].astype(np.float16)
    rounded.reshape(-1)[odd] = stored.reshape(-1)[odd].astype(np.float32)
    return rounded, stored


def settle_ties(bits: "np.ndarray", values: "np.ndarray", dropped: int) -> None:
    """Makes two roundings one: float64 to float32, as was done, and from there to `dropped` bits less, half of them up.

    They differ where float32 lies halfway between two numbers of the narrower format and the value itself does not.
    There the float32 number takes a step towards its value. Where the value lies there too it is to become the even one
    of the two, and takes a step down if that is the lower. bits: of the float32 numbers, uint32, changed in place.
    """
    import numpy as np

    halfway = np.flatnonzero((bits & np.uint32((1 << dropped) - 1)) == np.uint32(1 << dropped - 1))
    held = bits.reshape(-1)[halfway]
    exact, near = np.abs(values.reshape(-1)[halfway]), np.abs(held.view(np.float32))
    down = (exact < near) | ((exact == near) & (held & np.uint32(1 << dropped) == 0))
    bits.reshape(-1)[halfway] = held + (exact > near).astype(np.uint32) - down.astype(np.uint32)


def beyond_float16(top: "np.ndarray") -> "np.ndarray":
    """Flat indices of values below 2^-14 or of 2^16 and above, which float16 holds with fewer bits or not at all.

    top: the upper halves of their float32 bits, uint16; of a bfloat16, its bits.
    """
    import numpy as np

    magnitude = top & np.uint16(0x7FFF)
    magnitude -= np.uint16(0x3880)
    return np.flatnonzero(magnitude >= np.uint16(0x0F00))


def float16_of_bfloat16(stored: "np.ndarray") -> "np.ndarray":
    """As `encoded` stores widened(stored) in F16, in a third of the time: but for the far ends, bits only move.

    stored: uint16 holding bfloat16's bits, of one dimension.
    """
    import numpy as np

    half = stored << np.uint16(3)  # 7 bits of the significand become 10
    half -= np.uint16(112 << 10 & 0xFFFF)  # the biases differ by 112
    half &= np.uint16(0x7FFF)
    half |= stored & np.uint16(0x8000)
    odd = beyond_float16(stored)
    with np.errstate(over="ignore"):
        half[odd] = widened(stored[odd]).astype(np.float16).view(np.uint16)
    return half.view(np.float16)


def finite(stored: "np.ndarray") -> bool:
    """Whether no element of an `encoded` array, or of one of float64, is inf or nan."""
    import numpy as np

    if stored.dtype in (np.float32, np.float64):
        return bool(np.isfinite(stored).all())
    top = np.uint16(0x7C00 if stored.dtype == np.float16 else 0x7F80)  # all bits of the exponent
    return not bool(((stored.view(np.uint16) & top) == top).any())


def noise(key: int, rows: slice, columns: int) -> "np.ndarray":
    """Uniform uint16 of shape (rows, columns): elements of one stream a key, however the rows are cut."""
    import numpy as np

    first, count = rows.start * columns, (rows.stop - rows.start) * columns
    stream = np.random.Philox(key=key)
    stream.advance(first // 16)  # a step of the counter is four uint64
    skip = first % 16
    drawn = stream.random_raw(-(-(skip + count) // 4)).view(np.uint16)
    return drawn[skip : skip + count].reshape(rows.stop - rows.start, columns)
