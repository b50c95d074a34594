"""What of a sample is compared as its text."""

import polars as pl

__all__ = ["compared_text"]


def compared_text(samples: pl.DataFrame) -> pl.Series:
    """The prompt behind what it depends on: the system prompt, and all turns before it where it
    cannot be understood alone or is about nothing else than these turns."""  # noqa: D205, D209
    alone = ~pl.col("needs_history").fill_null(value=False) & (pl.col("media").list.len() > 0)
    turn = pl.element().struct.field
    said = pl.concat_str(turn("role"), turn("text"), separator=": ", ignore_nulls=True)
    system = pl.col("history").list.eval(said.filter(turn("role") == "system"))
    before = pl.when(alone).then(system).otherwise(pl.col("history").list.eval(said))
    text = pl.concat_str(before.list.join("\n"), "prompt", separator="\n", ignore_nulls=True)
    without = pl.col("history").is_null() | (before.list.len() == 0)
    return samples.select(pl.when(without).then("prompt").otherwise(text)).to_series()
