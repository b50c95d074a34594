"""Running stages: settings, the run folder, tables, progress; nothing of what a stage does."""
