"""`python -m nptool`: the command line."""

from nptool.cli.app import main

if __name__ == "__main__":
    main()
