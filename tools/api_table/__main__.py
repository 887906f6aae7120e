"""`python -m tools.api_table` prints docs/api.md."""

from __future__ import annotations

import sys

from tools.api_table.page import page

sys.stdout.write(page())
