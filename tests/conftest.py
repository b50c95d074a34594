"""What tests share: a stage of a fresh run folder, as the pipeline would hand it over."""

from collections.abc import Callable

import pytest

from mmrlhf_engine.config import Section
from mmrlhf_engine.store import Run, Stage


@pytest.fixture
def stage(tmp_path) -> Callable[..., Stage]:
    """``stage("dedup", config)`` begins a stage in ``tmp_path/run``; it ends by its ``finish``."""

    def begin(name: str, config: Section, *, threads: int = 2, seed: int = 0) -> Stage:
        run = Run(tmp_path / "run")
        begun = Stage(
            name=name,
            run=run,
            config=config,
            fingerprint=run.fingerprint(name, config, seed, None),
            threads=threads,
            memory=2**30,
            seed=seed,
        )
        begun.begin()
        return begun

    return begin
