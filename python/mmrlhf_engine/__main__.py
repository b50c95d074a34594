"""``python -m mmrlhf_engine`` is the command, for launchers that start a module."""

from mmrlhf_engine.cli import main

main()
