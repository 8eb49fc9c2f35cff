"""`python -m potstill`: the command line, also under a launcher."""

from potstill.cli import main

if __name__ == "__main__":
    main()
