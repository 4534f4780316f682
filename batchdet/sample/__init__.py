"""Drawn sample images with exact ground truth, for trying batchdet out and for training its own model."""
