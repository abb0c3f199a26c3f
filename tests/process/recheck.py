"""Checks kept histories again: `python -m tests.process.recheck FILE...` prints their figures and violations."""

import sys
from pathlib import Path

from tests.process.history import check, figures, from_lines


def main(paths: list[str]) -> int:
    """The exit code: 1 if a history breaks a promise."""
    guilty = False
    for path in paths:
        history = from_lines(Path(path).read_bytes())
        violations = check(history)
        print(f"{path}: {figures(history)}; {len(violations)} violations", *violations, sep="\n")
        guilty = guilty or bool(violations)
    return int(guilty)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
