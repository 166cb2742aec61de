"""`python -m purity_cli`, also from a plain checkout."""

from purity_cli.cli import main

if __name__ == "__main__":
    main()
