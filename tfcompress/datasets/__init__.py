"""Data sets of the papers and of users, and the held-out split on which every choice is made."""

from tfcompress.datasets.load import NAMES, Dataset, DatasetError, load, split_validation
from tfcompress.datasets.user import SCALINGS, DataError, UserData, load_user_data

__all__ = [
    "NAMES",
    "SCALINGS",
    "DataError",
    "Dataset",
    "DatasetError",
    "UserData",
    "load",
    "load_user_data",
    "split_validation",
]
