"""One seed for a run, many independent streams drawn from it by name."""

import hashlib


def derive_seed(seed: int, *names: object) -> int:
    """Returns a 31-bit seed that depends on `seed` and on each of `names`, and on nothing else.

    Two layers of one model must not start from the same numbers, and a layer must keep its
    numbers when another one is added before it; so each asks for a stream by its own name.
    """
    text = ":".join(str(part) for part in (seed, *names))
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") & 0x7FFFFFFF
