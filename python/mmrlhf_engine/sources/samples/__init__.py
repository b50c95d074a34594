"""Raw corpora of any format as batches of records in JSON text."""
