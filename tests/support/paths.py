"""Where things lie."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
SHARED = Path(os.environ.get("CLIPROXY_SHARED") or ROOT.parent / "shared")
