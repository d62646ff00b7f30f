"""Compression by recipe: from a Keras network to a small .tflite file and its report."""
