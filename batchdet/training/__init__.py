"""How batchdet's own model is trained, measured and exported; needs torch and onnx."""
