"""Results: the record of a run, published numbers, tables and plots made of both."""

from tfcompress.reporting.records import (
    Record,
    Row,
    environment,
    read_record,
    read_records,
    write_filter_norms,
    write_record,
    write_similarities,
    write_weight_histograms,
)

__all__ = [
    "Record",
    "Row",
    "environment",
    "read_record",
    "read_records",
    "write_filter_norms",
    "write_record",
    "write_similarities",
    "write_weight_histograms",
]
