"""The room ``curate``: raw corpora to chosen queries, one file a stage."""
