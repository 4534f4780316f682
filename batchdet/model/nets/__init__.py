"""batchdet's own small detector, in torch: backbone, neck, head."""
