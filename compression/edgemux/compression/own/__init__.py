"""A bundle of models that somebody brings along as ONNX files: wrapped, routed, certified and packed."""
