"""`python -m nlora` is the command line."""

from nlora.cli.app import main

if __name__ == "__main__":
    main()
