"""Families: how the raw outputs of a kind of detector become detections."""
