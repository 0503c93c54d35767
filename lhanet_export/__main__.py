"""`python -m lhanet_export` is `lhanet-export`."""

from lhanet_export.cli.main import main

if __name__ == "__main__":
    main()
