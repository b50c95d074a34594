"""Preference data of any known format to one memory-mapped dataset."""
