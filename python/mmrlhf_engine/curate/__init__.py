"""Raw corpora to chosen queries: one file a stage."""
