"""MM-DPO in TRL's ``DPOTrainer``, for text and vision-language models.

``pip install './kernels[trl]'`` in the folder of the repository; :class:`MMDPOTrainer` takes the
arguments of TRL's class. The columns of its data sets are those of TRL (``prompt``, ``chosen``,
``rejected``, ``images``), and

================== ================================================================================
margin             number, how far the chosen answer leads; needed
weight             number, at least 0: factor of the pair's loss; optional
tie                bool: the label of the pair is a fair coin; optional
ref_chosen_logps   number: summed log-probability of the chosen answer under the reference model;
ref_rejected_logps the same of the rejected answer; both or neither. With them no reference model
                   is loaded and none runs
================== ================================================================================

The reference log-probabilities of rows without these columns come from the reference model in every
step, or, with ``precompute_ref_log_probs=True``, once before training, for pictures too; they are
then columns of ``trainer.train_dataset``. The reference model is chosen as TRL chooses it: the one
that is passed, the model before training, or the model without its adapter.

Only the positions whose next token belongs to an answer reach the head; it must be a linear layer.
"""

_NEEDS = "mmrlhf_kernels.integrations.trl needs TRL 1.16"
_HINT = "hint: pip install './kernels[trl]', in the folder of the repository"

try:
    import trl as _trl
except ImportError as error:
    raise ImportError(f"{_NEEDS}, which cannot be imported ({error}); {_HINT}") from error

# Its private methods are overridden, and these change between minor versions.
if _trl.__version__.split(".")[:2] != ["1", "16"]:
    raise ImportError(f"{_NEEDS}; found {_trl.__version__}; {_HINT}")

from mmrlhf_kernels.integrations.trl.columns import MMDPOCollator  # noqa: E402
from mmrlhf_kernels.integrations.trl.settings import MMDPOConfig  # noqa: E402
from mmrlhf_kernels.integrations.trl.trainer import MMDPOTrainer  # noqa: E402

__all__ = ["MMDPOCollator", "MMDPOConfig", "MMDPOTrainer"]
