"""Unstructured sparsity by magnitude pruning (TF-MOT), and how much of it each layer takes."""

from tfcompress.sparsity.allocation import allocate, prunable_kernels, sparsity_of
from tfcompress.sparsity.magnitude import prune_wrap, pruning_callbacks, sparsify, strip

__all__ = ["allocate", "prunable_kernels", "prune_wrap", "pruning_callbacks", "sparsify", "sparsity_of", "strip"]
