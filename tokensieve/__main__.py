"""``python -m tokensieve`` is the command line, of the Python that is named."""

from tokensieve.cli.main import main

if __name__ == "__main__":
    main()
