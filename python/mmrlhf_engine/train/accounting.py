"""What became of each pair of the shards in a run, and of the pictures that cannot be decoded."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mmrlhf_engine.errors import StageError
from mmrlhf_engine.run.config import parse_share
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.shards.batch import PreferenceBatch
from mmrlhf_engine.shards.dataset import FLAGS

__all__ = ["Accounting"]

_FATES = ("not_reached", "trained", "tie", "unreadable", "held_out")
_LEAST_PICTURES = 100
"""Before a share of them says anything."""


class Accounting:
    """One fate a pair; a pair that was trained on once counts as trained.

    Args:
        pairs: Of the dataset.
        max_unreadable: The largest share of pictures that may stay blank, such as ``1%``.
        ties_train: Whether pairs of equal rank are trained on.
        progress: Each picture that stays blank is named once.
    """

    def __init__(
        self, pairs: int, max_unreadable: str, *, ties_train: bool, progress: Progress
    ) -> None:
        self._fate = np.zeros(pairs, np.uint8)
        self._limit = parse_share(max_unreadable, "data.max_unreadable")
        self._ties_train, self._progress = ties_train, progress
        self._named: set[int] = set()
        self._pictures = self._blank = 0

    def add(self, batches: list[PreferenceBatch[Any]]) -> None:
        """Count the pairs and pictures of a step.

        Raises:
            StageError: more of the pictures than allowed cannot be decoded.
        """
        for batch in batches:
            fate = np.full(len(batch.pair_row), _FATES.index("trained"), np.uint8)
            if not self._ties_train:
                fate[(batch.pair_flags & FLAGS["tie"]) != 0] = _FATES.index("tie")
            fate[batch.pair_weight == 0] = _FATES.index("unreadable")
            trained = self._fate[batch.pair_row] == _FATES.index("trained")
            self._fate[batch.pair_row[~trained]] = fate[~trained]
            self._pictures += len(batch.image_blob)
            self._blank += len(batch.unreadable)
            for blob, problem in batch.unreadable:
                if blob not in self._named:
                    self._progress.say(f"picture {blob} stays blank: {problem}")
                    self._named.add(blob)
        if self._pictures >= _LEAST_PICTURES and self._blank > self._limit * self._pictures:
            raise StageError(
                f"{self._blank:,} of {self._pictures:,} pictures so far cannot be decoded, and "
                f"data.max_unreadable allows {self._limit:.2%}",
                hint="mmrlhf-engine verify SHARDS finds damage; or raise data.max_unreadable",
            )

    def hold_out(self, rows: Any) -> None:
        """Say that these pairs are evaluated on, and not trained on."""
        self._fate[rows] = _FATES.index("held_out")

    def rows(self) -> dict[str, Any]:
        """``rows_in``, ``rows_out`` and ``dropped`` by reason, of pairs."""
        counts = np.bincount(self._fate, minlength=len(_FATES)).tolist()
        dropped = dict(zip(_FATES, counts, strict=True))
        return {
            "rows_in": len(self._fate),
            "rows_out": dropped.pop("trained"),
            "dropped": {reason: count for reason, count in dropped.items() if count},
        }

    def pictures(self) -> dict[str, int]:
        """Pictures of all steps, and those of them that stayed blank."""
        return {"pictures": self._pictures, "pictures_blank": self._blank}

    def state_dict(self) -> dict[str, Any]:
        """What is known so far, for a checkpoint."""
        return {**self.pictures(), "fate": torch.from_numpy(self._fate.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._pictures, self._blank = state["pictures"], state["pictures_blank"]
        self._fate = state["fate"].numpy()
