"""`queue-actor COMMAND`, or `python -m queue_actor COMMAND`; the server alone is `python -m web`.

The command line needs the extra `cli`. `token` does not: it makes access tokens for a server that was installed alone.
"""

import os
import sys
from collections.abc import Mapping, Sequence

from queue_actor import token_command

EXIT_UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits(3)


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Carry out one command; its exit code."""
    if arguments and arguments[0] == "token":
        return token_command.main(arguments[1:], environment)
    try:
        # Here, since `token` has to work where this cannot be imported.
        from queue_actor.commandline.group import main as carry_out
    except ModuleNotFoundError as missing:
        print(  # noqa: T201 - a command talks to its caller
            f"queue-actor: the command line needs {missing.name}: pip install 'queue-actor[cli]'; "
            "without it there is only `python -m queue_actor token`",
            file=sys.stderr,
        )
        return EXIT_UNAVAILABLE
    return carry_out(arguments, environment)


def program() -> None:
    """What `queue-actor` runs."""
    sys.exit(main(sys.argv[1:], os.environ))


if __name__ == "__main__":
    program()
