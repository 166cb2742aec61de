"""`purity`, and `python -m purity_cli` from a plain checkout."""

from __future__ import annotations

import sys
from typing import NoReturn

from purity_cli import process


def main() -> NoReturn:
    """Run the command line; exits 0 done, 1 PurityError, 2 usage, 3 from `bench`, 4 from `diff`, 130 interrupted."""
    process.run(_work)


def _work() -> int:
    # Not before the process answers signals.
    from purity_cli.cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    main()
