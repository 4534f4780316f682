"""Small detectors of our own, in torch, put together by name: backbone, neck, head."""
