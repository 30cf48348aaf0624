"""`segment plan` as a script; see --help."""

import sys

from segment.cli import main

if __name__ == "__main__":
    sys.exit(main(["plan", *sys.argv[1:]]))
