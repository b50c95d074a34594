"""Raw files to records and media, for every stage that reads what users bring."""
