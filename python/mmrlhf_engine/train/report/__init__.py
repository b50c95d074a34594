"""The page of a run: curves from its metrics."""
