"""TRL's ``DPOTrainer`` with a beta for each pair and the head on the tokens of answers alone.

What is overridden of TRL 1.16, and why:

========================= =========================================================================
``_compute_loss``         the loss, by ``fused_linear_mm_dpo`` inside the model's forward
``compute_ref_log_probs`` the reference's sums, by ``fused_linear_logp``, in each step or once
``_precompute_ref_logps`` columns that are there already are kept; pictures and the collator's
                          settings are a part of the cache's key
``_prepare_dataset``      checks columns; rows with pictures stay as they are
``_load_from_checkpoint`` weights are read by ``from_pretrained``: transformers' trainer skips the
``_load_best_model``      names that its models of pictures are saved under, with a warning
``get_batch_samples``     counts pairs and tokens of a step, over its micro-batches and ranks
========================= =========================================================================
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch import Tensor
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
from trl.trainer.utils import use_adapter

from mmrlhf_kernels import (
    MMDPOOutput,
    dynamic_beta,
    fused_linear_mm_dpo,
)
from mmrlhf_kernels.integrations.trl.columns import (
    COLUMNS,
    REFERENCE,
    MMDPOCollator,
    check_columns,
    has_reference,
)
from mmrlhf_kernels.integrations.trl.rows import AnswerRows
from mmrlhf_kernels.integrations.trl.settings import MMDPOConfig
from mmrlhf_kernels.integrations.trl.states import Head, add_states_function

__all__ = ["MMDPOTrainer"]

_TEXT_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
_PICTURE_COLUMNS = (
    "prompt", "chosen", "rejected", "image", "images", "tools", "chat_template_kwargs",
)  # fmt: skip
_OF_PAIRS = {
    "rewards/chosen": "chosen_rewards",
    "rewards/rejected": "rejected_rewards",
    "rewards/accuracies": "accuracies",
    "rewards/margins": "margins",
    "logps/chosen": "chosen_logp",
    "logps/rejected": "rejected_logp",
    "beta/mean": "beta",
}
"""Metrics that are means over pairs, and the fields of the loss that hold their values."""
_EXTREMES = {"beta/min": min, "beta/max": max}


class MMDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """MM-DPO of text and vision-language models; arguments as those of TRL's ``DPOTrainer``.

    The columns of the data sets are listed in :mod:`mmrlhf_kernels.integrations.trl`. Losses are
    means over the pairs, and over the chosen tokens, of a whole step: the same step in several
    micro-batches, or on several ranks, has the same gradient. Logged are ``rewards/chosen``,
    ``rewards/rejected``, ``rewards/accuracies`` (1/2 for a tie), ``rewards/margins``,
    ``logps/chosen``, ``logps/rejected``, ``num_tokens`` as TRL has them, ``loss/dpo``, with a
    supervised term ``loss/sft``, and ``beta/mean``, ``beta/min``, ``beta/max``. What needs the
    whole distribution of a token (``entropy``, ``logits/*``, ``mean_token_accuracy``) is not
    computed.

    Args:
        model: As in TRL; its head is a linear layer without an adapter.
        ref_model: As in TRL. None: the model before training, or without its adapter.
        args: An :class:`MMDPOConfig`.
        data_collator: As in TRL; :class:`MMDPOCollator` is put around it.
        train_dataset: As in TRL, with the column ``margin``.
        eval_dataset: The same.
        processing_class: As in TRL.
        **others: The other arguments of TRL's trainer.

    Raises:
        TypeError: ``args`` or a column is of another kind.
        ValueError: A column is missing, or settings, model and data do not fit together.
    """

    loss_is_scaled_for_ga = True
    # What the card of a saved model says.
    _tag_names: ClassVar = ["trl", "mm-dpo"]
    _name = "MM-DPO"
    _paper: ClassVar = {
        "title": "MM-RLHF: The Next Step Forward in Multimodal LLM Alignment",
        "id": "2502.10391",
    }
    data_collator: Any
    _signature_columns: list[str] | None

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: MMDPOConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **others: Any,
    ) -> None:
        if not isinstance(args, MMDPOConfig):
            raise TypeError(f"args is {type(args).__name__}; expected an MMDPOConfig")
        args = copy.copy(args)  # TRL and the lines below change it
        first = {} if train_dataset is None else next(iter(train_dataset))
        self._has_pictures = "image" in first or "images" in first
        self._has_reference = has_reference(first)
        if self._has_reference:
            _check_no_second_reference(ref_model, args)
            args.precompute_ref_log_probs = True  # TRL then loads no reference model
        if self._has_pictures:
            processing_class = _processor_of(model, processing_class, args)
            data_collator = data_collator or DataCollatorForVisionPreference(
                processing_class, args.max_length, args.pad_to_multiple_of
            )
        super().__init__(
            model, ref_model, args, data_collator, train_dataset, eval_dataset, processing_class,
            **others,
        )  # fmt: skip
        if not isinstance(self.data_collator, MMDPOCollator):
            self.data_collator = MMDPOCollator(self.data_collator)
        self._prepare_models()

    @property
    def _is_vision_dataset(self) -> bool:
        """False to TRL, which neither prepares rows with pictures nor precomputes for them."""
        return False

    @_is_vision_dataset.setter
    def _is_vision_dataset(self, found: bool) -> None:
        """TRL's own finding, which ``_has_pictures`` holds already."""

    def _prepare_models(self) -> None:
        """Check what a model must be, and let its forward take a function of its states."""
        if self.is_fsdp_enabled or self.accelerator.parallelism_config is not None:
            raise ValueError(
                "FSDP and tensor, context or sequence parallelism are not supported by "
                "MMDPOTrainer; hint: DDP or DeepSpeed"
            )
        if self.aux_loss_enabled:
            raise ValueError(
                "the model has an auxiliary loss of its router, which MMDPOTrainer does not add; "
                "hint: router_aux_loss_coef=0.0"
            )
        adapted = is_peft_model(self.model)
        if adapted and self.model.active_peft_config.is_prompt_learning:
            kind = type(self.model.active_peft_config).__name__
            raise ValueError(f"{kind} adds tokens to prompts, which is not supported; hint: LoRA")
        add_states_function(self.model.get_base_model() if adapted else self.model)
        if self.ref_model is not None:
            add_states_function(self.accelerator.unwrap_model(self.ref_model))

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        check_columns(dataset, dataset_name, reference=self._has_reference)
        if self._has_pictures:
            return dataset  # the collator does the rest, as in TRL
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            inputs = _PICTURE_COLUMNS if self._has_pictures else _TEXT_COLUMNS
            self._signature_columns = [*inputs, *COLUMNS]

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        self._prepare_models()  # TRL calls this from its constructor
        if has_reference(dataset.features or next(iter(dataset))):
            return dataset
        if isinstance(dataset, Dataset):
            if self.accelerator.num_processes > 1 and not dataset.cache_files:
                raise ValueError(
                    f"data set '{name}' lies in memory, so that ranks cannot share its reference "
                    "log-probabilities; hint: save_to_disk, and load_from_disk on each rank"
                )
            # The collator tokenizes rows with pictures: its settings are a part of the key.
            collator = getattr(self.data_collator, "collator", self.data_collator)
            key = (dataset._fingerprint, collator, self.args.bf16, self.args.fp16)
            dataset = dataset.select(range(len(dataset)), new_fingerprint=Hasher.hash(key))
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def compute_ref_log_probs(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Summed log-probabilities under the reference, ([P] chosen, [P] rejected), float32."""
        rows = AnswerRows(inputs)
        with torch.no_grad(), _evaluating(model), self._as_reference(), self.accelerator.autocast():
            sums: Tensor = model(**rows.model_inputs, of_states=rows.sums)
        pairs = sums.shape[0] // 2
        return sums[:pairs], sums[pairs:]

    def _as_reference(self) -> contextlib.AbstractContextManager[Any]:
        """The policy without its adapter, or with the one it began with, while this is open."""
        if self.ref_model is not None or not is_peft_model(self.model):
            return contextlib.nullcontext()
        adapted = self.accelerator.unwrap_model(self.model)
        kept: contextlib.AbstractContextManager[Any] = use_adapter(
            adapted, adapter_name="ref" if "ref" in adapted.peft_config else None
        )
        return kept

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        """The micro-batches of a step, each with the step's pairs and chosen tokens.

        Gradients are averaged over ranks, so both are counts of all ranks divided by the ranks.
        """
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            counts = (
                torch.stack([AnswerRows(batch).counts() for batch in batches]).sum(0).to(device)
            )
            of_ranks = self.accelerator.gather(counts).view(-1, 2)
            num_pairs, num_tokens = of_ranks.sum(0) / self.accelerator.num_processes
            for batch in batches:
                batch |= {"num_pairs": num_pairs, "num_tokens": num_tokens}
        return batches, items

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._read_weights(model or self.model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._read_weights(self.model, self.state.best_model_checkpoint):
            super()._load_best_model()

    def _read_weights(self, model: Any, folder: str) -> bool:
        """Read a whole model of transformers; False where it is an adapter, or DeepSpeed's."""
        if self.is_deepspeed_enabled or not isinstance(model, PreTrainedModel):
            return False
        saved = type(model).from_pretrained(folder, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())
        return True

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any], return_outputs: bool) -> Any:
        mode = "train" if self.model.training else "eval"
        rows = AnswerRows(inputs)
        if has_reference(inputs):
            reference = inputs[REFERENCE[0]], inputs[REFERENCE[1]]
        else:
            reference = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        beta = dynamic_beta(inputs["margin"], self.beta, self.args.beta_w, self.args.beta_k)
        options = {
            "loss_type": self.args.loss_type[0],
            "label_smoothing": self.args.label_smoothing,
            "sft_weight": self.args.sft_weight,
            "sft": self.args.sft_mean,
            "pair_weight": inputs.get("weight"),
            "tie": inputs.get("tie"),
            "num_pairs": inputs.get("num_pairs"),
            "num_tokens": inputs.get("num_tokens"),
        }

        def loss(states: Tensor, head: Head) -> MMDPOOutput:
            return fused_linear_mm_dpo(
                rows.of(states), head.weight, rows.target, *reference, beta,
                cu_seqlens=rows.bounds, bias=head.bias, softcap=head.softcap,
                logit_scale=head.logit_scale, **options,
            )  # fmt: skip

        out: MMDPOOutput = model(**rows.model_inputs, of_states=loss)
        self._keep_metrics(mode, rows, out, inputs)
        if not return_outputs:
            return out.loss
        with torch.no_grad():  # for compute_metrics and predict, which ask for logits
            return out.loss, model(**rows.model_inputs)

    def _keep_metrics(
        self, mode: str, rows: AnswerRows, out: MMDPOOutput, inputs: Mapping[str, Any]
    ) -> None:
        """Means over the pairs of all ranks, with one exchange between ranks and one host read."""
        pairs, tokens = rows.counts()
        num_pairs, num_tokens = inputs.get("num_pairs", pairs), inputs.get("num_tokens", tokens)
        by_token = self.args.sft_mean == "token"
        sums = {name: getattr(out, field).sum() for name, field in _OF_PAIRS.items()}
        sums["loss/dpo"] = out.preference_loss * num_pairs
        sft = out.sft_loss * (num_tokens if by_token else num_pairs)
        read = inputs["attention_mask"].sum()
        values = [*sums.values(), sft, pairs, tokens, read, out.beta_min, out.beta_max]
        line = torch.stack([value.detach().float() for value in values])
        ranks = self.accelerator.gather(line).view(-1, len(values))
        *total, least, most = ranks.sum(0).tolist()
        *means, sft_sum, pairs_of_all, tokens_of_all, tokens_read = total
        least, most = ranks[:, -2].min().item(), ranks[:, -1].max().item()
        kept = self._metrics[mode]
        for name, total_of_pairs in zip(sums, means, strict=True):
            kept[name].append(total_of_pairs / pairs_of_all)
        if self.args.sft_weight:
            kept["loss/sft"].append(sft_sum / (tokens_of_all if by_token else pairs_of_all))
        kept["beta/min"].append(least)
        kept["beta/max"].append(most)
        if mode == "train":
            self._total_train_tokens += int(tokens_read)
        kept["num_tokens"] = [self._total_train_tokens]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in TRL, which takes means; of the extremes of beta the extremes are logged."""
        kept = self._metrics["train" if self.model.training else "eval"]
        for name, extreme in _EXTREMES.items():
            if name in kept:
                kept[name] = [extreme(kept[name])]
        super().log(logs, start_time)


def _check_no_second_reference(ref_model: Any, args: MMDPOConfig) -> None:
    """Raise where the data set has the reference's log-probabilities and settings say otherwise.

    Raises:
        ValueError: There is a reference model too, or it is to change.
    """
    if ref_model is not None or args.sync_ref_model:
        given = "ref_model" if ref_model is not None else "sync_ref_model"
        raise ValueError(
            f"{given} was given, and the data set has {' and '.join(REFERENCE)}; hint: leave out "
            f"{given}, or remove the columns"
        )


def _processor_of(model: Any, processor: Any, args: MMDPOConfig) -> Any:
    """The processor of a model for rows with pictures.

    Raises:
        TypeError: It is a tokenizer.
        ValueError: Prompts would be cut at their start.
    """
    if args.max_length is not None and args.truncation_mode == "keep_end":
        raise ValueError(
            "truncation_mode is 'keep_end', which cuts pictures off; hint: 'keep_start', or "
            "max_length=None"
        )
    if processor is None:
        folder = model if isinstance(model, str) else model.config._name_or_path
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=args.trust_remote_code)
    if not isinstance(processor, ProcessorMixin):
        raise TypeError(
            f"the data set has pictures and processing_class is {type(processor).__name__}; "
            "expected a processor of a vision-language model"
        )
    return processor


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """No dropout and no checkpointing while this is open."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
