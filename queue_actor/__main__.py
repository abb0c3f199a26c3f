"""`python -m queue_actor COMMAND`: the commands beside the server, which is `python -m web`."""

import os
import sys
from collections.abc import Mapping, Sequence

from queue_actor import token_command

COMMANDS = {"token": token_command.main}
"""Each takes the arguments behind its name and the environment, and gives an exit code."""

USAGE = f"usage: python -m queue_actor {'|'.join(COMMANDS)} ...; each has a --help"


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Carry out one command; its exit code, or 64 if there is no such command."""
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:], environment)
    asked = bool({"-h", "--help"} & set(arguments))
    print(USAGE, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else token_command.EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
