"""``python -m attnzoo`` is the ``attnzoo`` command."""

import sys

from .tools.main import main

if __name__ == "__main__":
    sys.exit(main())
