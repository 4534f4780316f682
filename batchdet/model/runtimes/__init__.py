"""Runtimes: what executes a model file."""
