"""Run every benchmark, each in a process of its own, and print one report.

python -m benchmarks [update offline_update processes runner worlds spans credit sampling language_step]
python -m benchmarks online_peer frames
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

NAMES = ("update", "offline_update", "processes", "runner", "worlds", "spans", "credit", "sampling", "language_step")
ASKED = ("online_peer", "frames")
"""Those that need what `make install` leaves out, a package or Chromium: they run only when named."""


def main(names: list[str]) -> int:
    """Run the benchmarks called `names`, or all; the exit code is that of the first that failed, else 0."""
    unknown = sorted(set(names) - {*NAMES, *ASKED})
    if unknown:
        print(f"no benchmark '{unknown[0]}'; there are {', '.join((*NAMES, *ASKED))}", file=sys.stderr)
        return 2
    # waiting threads must sleep: spinning ones take the core from whoever else is at work
    env = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    begun = time.monotonic()
    for name in names or NAMES:
        print(f"== {name}", flush=True)
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], env=env, check=False).returncode
        if code:
            return code
        print(flush=True)
    print(f"{time.monotonic() - begun:.0f} s in all, load {os.getloadavg()[0]:.1f} at the end")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
