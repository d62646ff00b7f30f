"""Data sets of the papers, and the held-out split on which every choice is made."""

from tfcompress.datasets.load import NAMES, Dataset, DatasetError, load, split_validation

__all__ = ["NAMES", "Dataset", "DatasetError", "load", "split_validation"]
