"""Kernels for preference training, usable without the engine.

The import name is ``mmrlhf_kernels`` because ``kernels`` belongs to another package that
transformers imports. This version is the face of the distribution: it exports its version only.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
