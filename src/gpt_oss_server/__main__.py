"""`python -m gpt_oss_server` is the same command line as `gpt-oss-server`."""

import sys

from gpt_oss_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
