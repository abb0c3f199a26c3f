"""How long a job waits before it is tried again: a pure function, its randomness an argument."""

from queue_actor.jobs import Jitter, Retry, RetryKind


def retry_seconds(retry: Retry, tries: int, draw: float) -> float:
    """The pause after so many unsuccessful tries.

    Args:
        retry: The policy.
        tries: How often it was tried without success, from 1.
        draw: A number from 0 to 1, for the jitter.

    With full jitter the pause is drawn evenly from nothing to the exponential one, which spreads jobs that failed
    together better than any narrower jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """
    seconds = retry.base_seconds
    if retry.kind is RetryKind.EXPONENTIAL:
        try:
            seconds = min(seconds * retry.factor ** (tries - 1), retry.cap_seconds)
        except OverflowError:  # beyond floats is beyond any cap
            seconds = retry.cap_seconds
    return seconds * draw if retry.jitter is Jitter.FULL else seconds
