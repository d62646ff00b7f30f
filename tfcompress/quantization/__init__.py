"""Weights of few values: int8 training by TF-MOT, and without TensorFlow weight sharing and binary weights."""
