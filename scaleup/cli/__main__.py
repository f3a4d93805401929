"""This module lets `python -m scaleup.cli` do what `scaleup` does."""

from scaleup.cli import main

if __name__ == "__main__":
    main()
