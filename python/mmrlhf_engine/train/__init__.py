"""The room of training: preference shards, and what reads them."""
