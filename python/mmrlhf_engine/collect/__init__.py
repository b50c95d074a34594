"""Ranks and annotations to preference pairs."""
