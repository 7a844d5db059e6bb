"""The command line as `python -m reloss`."""

from reloss.cli import main

if __name__ == "__main__":
    main()
