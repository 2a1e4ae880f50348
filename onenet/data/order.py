"""The order of the training images, as a function of the seed, and its split into micro-batches."""

from collections.abc import Iterator

import numpy as np

Key = tuple[int, int]  # epoch, image number


def training_order(sizes_hw: np.ndarray, batch: int, seed: int) -> Iterator[list[Key]]:
    """Yields batches of (epoch, image) forever, with a new permutation in each epoch.

    `sizes_hw` [I, 2]. A batch holds only wide or only tall images, to keep padding small. It may
    span two epochs.
    """
    wide = sizes_hw[:, 1] > sizes_hw[:, 0]
    remainders = [np.zeros((0, 2), dtype=np.int64)] * 2  # tall, wide: keys for the next batch
    epoch = 0
    while True:
        order = np.random.default_rng([seed, 0, epoch]).permutation(len(wide))
        batches, ends = [], []
        for is_wide in (False, True):
            positions = np.flatnonzero(wide[order] == is_wide)
            keys = np.column_stack([np.full(len(positions), epoch), order[positions]])
            keys = np.concatenate([remainders[is_wide], keys])
            count = len(keys) // batch
            remainders[is_wide] = keys[count * batch :]
            batches.append(keys[: count * batch].reshape(count, batch, 2))
            # Batches are ordered by the position of their last image in the permutation.
            offset = len(keys) - len(positions)
            ends.append(positions[np.arange(1, count + 1) * batch - 1 - offset])
        sorted_batches = np.concatenate(batches)[np.concatenate(ends).argsort()]
        for keys in sorted_batches:
            yield [(e, image) for e, image in keys.tolist()]
        epoch += 1


def split_batch(keys: list[Key], count: int) -> list[list[Key]]:
    """Splits a batch into `count` consecutive micro-batches whose lengths differ by at most one."""
    ends = [len(keys) * number // count for number in range(count + 1)]
    return [keys[start:end] for start, end in zip(ends, ends[1:], strict=False)]
