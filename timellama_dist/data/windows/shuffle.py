"""A random order of windows that takes no memory per window and reads with locality.

Integers only. An epoch's window ids are rotated by a random offset and cut into chunks of
`CHUNK_WINDOWS` consecutive ids. The chunks are permuted; consecutive ones form a bucket of at most
`open_chunks`, and the windows of a bucket are permuted among themselves. So neighbours in the order
come from anywhere in a bucket, whose chunks come from anywhere in the data, while a reader has
the rows of one bucket open at a time. It isn't a uniformly random permutation: two windows of one
chunk are always within a bucket of each other. With at most `open_chunks` chunks it is one.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

CHUNK_WINDOWS = 1024
"""Consecutive windows that stay together in a bucket."""
MOST_OPEN_CHUNKS = 64
LEAST_OPEN_CHUNKS = 4
OPEN_BYTES = 128 << 20
"""Most bytes of a bucket's rows, as float32."""

_ROUNDS = 6


def fitting_chunks(num_channels: int, context_len: int, horizon: int) -> int:
    """Choose a bucket's chunks: fewer for wide data, so that its rows stay within `OPEN_BYTES`."""
    chunk_bytes = 4 * num_channels * (CHUNK_WINDOWS + context_len + horizon)
    return min(max(OPEN_BYTES // chunk_bytes, LEAST_OPEN_CHUNKS), MOST_OPEN_CHUNKS)


def shuffled_ids(
    num_windows: int, offsets: IntArray, *, open_chunks: int, seed: int, epoch: int
) -> IntArray:
    """List the window ids at offsets in [0, num_windows) of an epoch's order, shape (N,).

    Buckets are of equal size but for one chunk, so that none at the end is shuffled less. The
    last, short chunk comes last; the rotation makes it other windows in each epoch.
    """
    num_slots, num_buckets = _num_parts(num_windows, open_chunks)
    # The bucket b with b * num_slots // num_buckets <= slot < (b + 1) * num_slots // num_buckets.
    buckets = ((offsets // CHUNK_WINDOWS + 1) * num_buckets - 1) // num_slots
    ids = np.empty_like(offsets)
    for bucket in np.unique(buckets).tolist():
        here = buckets == bucket
        begin = bucket * num_slots // num_buckets * CHUNK_WINDOWS
        ids[here] = _bucket(num_windows, open_chunks, seed, epoch, bucket)[offsets[here] - begin]
    return ids


def _num_parts(num_windows: int, open_chunks: int) -> tuple[int, int]:
    """Chunks of an epoch, full or short, and the buckets that they go into."""
    num_slots = -(-num_windows // CHUNK_WINDOWS)
    return num_slots, -(-num_slots // open_chunks)


# At most 512 KiB each; a batch may straddle two buckets, a reader ahead of it two more.
@lru_cache(maxsize=4)
def _bucket(num_windows: int, open_chunks: int, seed: int, epoch: int, bucket: int) -> IntArray:
    """Window ids of one bucket in order."""
    num_slots, num_buckets = _num_parts(num_windows, open_chunks)
    first, last = (number * num_slots // num_buckets for number in (bucket, bucket + 1))
    size = min(last * CHUNK_WINDOWS, num_windows) - first * CHUNK_WINDOWS
    rotation, keys = _epoch_secrets(num_windows, seed, epoch)
    chunks = _permuted(np.arange(first, last), num_windows // CHUNK_WINDOWS, keys)
    order = np.random.Generator(np.random.PCG64([seed, epoch, bucket])).permutation(size)
    slots, inside = np.divmod(order, CHUNK_WINDOWS)
    ids = (chunks[slots] * CHUNK_WINDOWS + inside + rotation) % num_windows
    ids.flags.writeable = False
    return ids


def _epoch_secrets(num_windows: int, seed: int, epoch: int) -> tuple[int, NDArray[np.uint64]]:
    """Draw the epoch's rotation, and the keys of its permutation of chunks."""
    # A spawn key, because the seed [seed, epoch] is that of bucket 0, [seed, epoch, 0].
    source = np.random.SeedSequence([seed, epoch], spawn_key=(1,))
    generator = np.random.Generator(np.random.PCG64(source))
    keys = generator.integers(0, 2**64, size=_ROUNDS, dtype=np.uint64)
    return int(generator.integers(num_windows)), keys


def _permuted(slots: IntArray, size: int, keys: NDArray[np.uint64]) -> IntArray:
    """Compute images of slots under a keyed permutation of [0, size); others stay as they are.

    A Feistel network permutes the least power of four that holds `size`; an image outside is
    permuted again until it lies inside, which keeps it one-to-one.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    images = slots.astype(np.uint64)
    outside = np.flatnonzero(slots < size)
    while outside.size:
        images[outside] = _feistel(images[outside], half, keys)
        outside = outside[images[outside] >= size]
    return images.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return (left << bits) | right


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finaliser of splitmix64 (Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
