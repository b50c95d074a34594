"""Preference shards: datasets, sidecar columns, the order of training, the loader."""
