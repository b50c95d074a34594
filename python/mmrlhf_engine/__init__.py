"""From raw multimodal samples to an aligned model: curate, collect, train, measure.

The command line is the front door (``mmrlhf-engine --help``); :mod:`mmrlhf_engine.pipeline` is the
same walk from Python. Importing this package imports nothing heavy.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
