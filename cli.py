"""The `holdfast` command in a checkout: `python cli.py status`."""

from repo.commands import main

if __name__ == "__main__":
    main()
