"""Reproductions of published results with tfcompress: one module per paper, `python -m experiments.<name> --help`."""
