"""Detectors: cards, the cache of model files, runtimes and families."""
