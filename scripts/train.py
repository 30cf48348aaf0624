"""`segment train` as a script; see --help."""

import sys

from segment.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
