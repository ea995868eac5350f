"""Small networks built from cheap convolutions, made to measure for an input shape."""
