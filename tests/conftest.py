"""Two cores are shared by everything that runs here: one thread per test process is steadier than many."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
