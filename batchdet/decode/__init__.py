"""From encoded bytes to upright RGB pixels, and onto the model's canvas."""
