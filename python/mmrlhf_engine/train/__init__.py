"""Training on preference shards: reference log-probabilities, MM-DPO, supervised, sampling."""
