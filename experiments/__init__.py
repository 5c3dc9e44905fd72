"""One file for each figure: its claim, its numbers, and what would refute it. `python -m experiments` lists them."""
