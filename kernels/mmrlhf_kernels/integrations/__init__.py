"""Trainers of other libraries with the losses of this package; each is imported by its own name."""
