"""Published numbers and our targets, as data (`published.csv`)."""

import csv
import dataclasses
import pathlib
import re

from tfcompress.reporting.summary import METRICS


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number of one published point.

    Attributes:
        metric: a name in `METRICS`, which gives the unit.
        published: the number, or None where only ours is shown.
        reach: the number that ours must reach, or None.
        source: where it was published.
    """

    metric: str
    published: float | None
    reach: float | None
    source: str

    @property
    def limit(self):
        """What ours is held against: the target, without one the published number."""
        return self.published if self.reach is None else self.reach


@dataclasses.dataclass(frozen=True)
class Point:
    """A published result, or a target of ours.

    Attributes:
        experiment: the experiment of ours that reproduces it.
        dataset: on this data set only.
        name: of the point.
        variants: regular expression for the whole name of our variants that may stand beside it.
        figures: tuple of `Figure`.
    """

    experiment: str
    dataset: str
    name: str
    variants: str
    figures: tuple


def published_points():
    """All points, in the order of the file.

    Raises:
        ValueError: a row names an unknown metric, or variants by what is no regular expression, or a published number
            lacks its source.
    """
    points = {}
    with open(pathlib.Path(__file__).with_name("published.csv"), newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            _check_pattern(row)
            key = (row["experiment"], row["dataset"], row["point"], row["variants"])
            points.setdefault(key, []).append(_figure(row))
    return [Point(*key, tuple(figures)) for key, figures in points.items()]


def _check_pattern(row):
    try:
        re.compile(row["variants"])
    except re.error as error:
        raise ValueError(f"published.csv: {row['variants']!r} is no regular expression ({error}) in {row}") from error


def _figure(row):
    published, reach = (float(row[name]) if row[name] else None for name in ("published", "reach"))
    if row["metric"] not in METRICS or (published is not None and not row["source"]):
        raise ValueError(f"published.csv: unknown metric or missing source in {row}")
    return Figure(row["metric"], published, reach, row["source"])
