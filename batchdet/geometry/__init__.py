"""Boxes, non-maximum suppression and the letterbox. NumPy only."""
