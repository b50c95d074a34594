"""The loader as a dataset of torch. The one module of ``shards`` that imports torch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from mmrlhf_engine.shards.batch import PreferenceBatch
from mmrlhf_engine.shards.loader import PreferenceLoader

__all__ = ["PreferenceDataset"]


class PreferenceDataset(IterableDataset[Any]):
    """Batches of a loader, for ``DataLoader(dataset, batch_size=None, num_workers=n)``.

    With n workers, worker j makes batches j, j + n, and so on, which come out in order. A batch's
    ``cursor`` is then what to save.
    """

    def __init__(self, loader: PreferenceLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[PreferenceBatch[np.ndarray]]:
        return iter(self.loader)
