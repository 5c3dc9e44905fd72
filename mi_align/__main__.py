"""`python -m mi_align` is the `mi-align` program."""

from mi_align.cli.main import run

if __name__ == "__main__":
    run()
