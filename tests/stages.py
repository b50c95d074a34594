"""Stages for tests: one that is begun and not yet run, and finished ones with given tables."""

import dataclasses

import numpy as np

from mmrlhf_engine.pipeline import STAGES
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.run.folder import Run
from mmrlhf_engine.run.stage import Resources, StageContext


class RunForTests:
    """A run folder whose stages are begun by name, or finished with what a test gives."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self, name: str, config: Section, *, threads=2, seed=0) -> StageContext:
        """A begun stage, to be given to its ``run``."""
        resources = Resources(threads=threads, seed=seed)
        context = StageContext(
            STAGES[name], config, self.run.stage_folder(name), self.run, resources
        )
        context.begin({"config": config.model_dump(mode="json"), "seed": seed})
        return context

    def upstream(self, name: str, **content) -> None:
        """Finish a stage with ``table=(schema, rows)``, or an array for a ``.npy`` file."""
        stage = dataclasses.replace(STAGES[name], writes=tuple(content))
        folder = self.run.stage_folder(name)
        context = StageContext(stage, Section(), folder, self.run, Resources())
        context.begin({})
        for entry, value in content.items():
            if isinstance(value, np.ndarray):
                np.save(folder / entry, value)
            else:
                schema, rows = value
                with context.table(entry, schema) as table:
                    table.write(rows)
        context.finish(rows_in=0, rows_out=0, dropped={})
