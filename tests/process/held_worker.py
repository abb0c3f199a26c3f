"""The worker, held in mid-job: before it reads a file named on its command line it says so, and waits for a line."""

import runpy
import sys
from pathlib import Path

held = {Path(path) for path in sys.argv[2:]}
read_bytes = Path.read_bytes


def read_bytes_when_told(path: Path) -> bytes:
    if path in held:
        print("held", "-", path, flush=True)
        sys.stdin.readline()
    return read_bytes(path)


Path.read_bytes = read_bytes_when_told  # type: ignore[assignment, method-assign] # the worker offers nothing to hold it by
runpy.run_path(str(Path(__file__).with_name("worker.py")))
