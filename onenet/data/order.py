"""In which order images are visited, as a function of the seed."""

from collections.abc import Iterator

import numpy as np

Key = tuple[int, int]  # epoch, number of the image


def training_order(sizes_hw: np.ndarray, batch: int, seed: int) -> Iterator[list[Key]]:
    """Batches of (epoch, image) without end: each epoch a new permutation of the images [I, 2].

    Wide and tall images go into batches of their own, so that little is padded. A batch may reach
    over the end of an epoch.
    """
    wide = sizes_hw[:, 1] > sizes_hw[:, 0]
    waiting = [np.zeros((0, 2), dtype=np.int64)] * 2  # of each kind: the last, not yet full batch
    epoch = 0
    while True:
        order = np.random.default_rng([seed, 0, epoch]).permutation(len(wide))
        full, ends = [], []
        for kind in (False, True):
            places = np.flatnonzero(wide[order] == kind)
            keys = np.column_stack([np.full(len(places), epoch), order[places]])
            keys = np.concatenate([waiting[kind], keys])
            count = len(keys) // batch
            waiting[kind] = keys[count * batch :]
            full.append(keys[: count * batch].reshape(count, batch, 2))
            # A batch goes out when its last image has come.
            behind = len(keys) - len(places)
            ends.append(places[np.arange(1, count + 1) * batch - 1 - behind])
        batches = np.concatenate(full)
        for at in np.concatenate(ends).argsort():
            yield [(e, image) for e, image in batches[at].tolist()]
        epoch += 1


def pieces(keys: list[Key], count: int) -> list[list[Key]]:
    """The batch in `count` consecutive pieces, which differ in length by at most one."""
    ends = [len(keys) * at // count for at in range(count + 1)]
    return [keys[start:end] for start, end in zip(ends, ends[1:], strict=False)]
