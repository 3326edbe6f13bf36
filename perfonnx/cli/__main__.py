"""The command line as a module: `python -m perfonnx.cli`."""

import sys

from perfonnx.cli import main

if __name__ == "__main__":
    sys.exit(main())
