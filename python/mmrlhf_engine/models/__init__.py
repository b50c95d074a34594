"""Models behind narrow interfaces; nothing of stages."""
