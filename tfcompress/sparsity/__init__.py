"""Unstructured sparsity by magnitude pruning, and how much of it each layer takes."""

from tfcompress.sparsity.allocation import allocate, prunable_kernels, sparsity_of
from tfcompress.sparsity.magnitude import MagnitudePruning, sparsify

__all__ = ["MagnitudePruning", "allocate", "prunable_kernels", "sparsify", "sparsity_of"]
