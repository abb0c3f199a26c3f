"""Who did what to whose jobs: a log line for each verb of an operator."""

import logging
from typing import Any

from web.callers import caller_of
from web.requests import asked

logger = logging.getLogger("web.audit")


def audit(verb: str, **facts: Any) -> None:
    """Note that an operator's verb was carried out: by whom, on which queue, on what, how many jobs."""
    who = caller_of(asked()).name or "anonymous"
    logger.info("audit", extra={"facts": {"verb": verb, "who": who, **facts}})
