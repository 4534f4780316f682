"""Loaders: how each kind of file becomes a module of PyTorch."""
