"""Reproductions of published results with tfcompress, a module each: `python -m experiments.<name> --help`."""
