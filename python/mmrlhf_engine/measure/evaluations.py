"""The evaluations by name, each imported when it is asked for."""

import importlib

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.run.stage import Stage

__all__ = ["stage_of"]

_MODULES = {
    "reward_bench": "reward_bench",
    "preferences": "preferences",
    "win_rate": "win_rate",
    "safety": "safety",
    "vqa": "vqa",
    "benchmarks": "lmms_eval",
}


def stage_of(evaluation: str) -> Stage:
    """The stage of an evaluation.

    Raises:
        ConfigError: there is no such evaluation.
    """
    if evaluation not in _MODULES:
        raise ConfigError(
            f"evaluation: found {evaluation!r}, expected one of {', '.join(_MODULES)}"
        )
    module = importlib.import_module(f"mmrlhf_engine.measure.{_MODULES[evaluation]}")
    stage: Stage = module.STAGE
    return stage
