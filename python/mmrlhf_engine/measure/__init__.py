"""Benchmarks: how good a model or a reward model is, with intervals."""
