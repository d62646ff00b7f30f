"""`python -m tfcompress.reporting tables|plots [--results=results] [--readme=README.md]`."""

import argparse
import sys

from tfcompress.reporting.plots import write_plots
from tfcompress.reporting.tables import write_tables


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m tfcompress.reporting", description="Tables and plots from records."
    )
    parser.add_argument("what", choices=("tables", "plots"))
    parser.add_argument("--results", default="results", help="folder of the records")
    parser.add_argument("--readme", help="tables: also fill the block of results in this file")
    options = parser.parse_args(arguments)
    try:
        if options.what == "tables":
            print(write_tables(options.results, options.readme))
        else:
            print(*write_plots(options.results), sep="\n")
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
