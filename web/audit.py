"""Who did what to whose jobs: a log line for each verb of an operator."""

import logging
from typing import Any

logger = logging.getLogger("web.audit")


def audit(verb: str, *, who: str = "anonymous", **facts: Any) -> None:
    """Note that an operator's verb was carried out: on which queue, on what, how many jobs."""
    logger.info("audit", extra={"facts": {"verb": verb, "who": who, **facts}})
