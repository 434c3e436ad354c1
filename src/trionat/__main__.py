"""`python -m trionat`."""

from trionat.cli import main

if __name__ == "__main__":
    main()
