"""What a training command would do, without doing it: packs, work and memory."""
