"""Handlers: the functions that do jobs, what they are given, and what comes of them.

    @app.job("resize", queue="images")
    def resize(picture: Picture, job: RunningJob) -> dict[str, int]: ...

The payload is decoded to what its parameter is annotated with: a struct of msgspec, a dataclass, or any other type that
msgspec knows. A parameter that is annotated with `RunningJob`, or called `job` without an annotation, is given the job
itself. Either may be left out.

What a handler returns is the job's result, and must be JSON. What it raises fails the attempt, with the type and the
message of the exception; the job is tried again by its retry policy. `Retry` says when, `Reject` that no retry helps.
"""

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import cached_property
from math import inf
from typing import Any, Final, Literal

import anyio
import msgspec

from queue_actor.client_answers import Extended, Job, Lease
from queue_actor.client_bodies import ERROR_MESSAGE_CHARACTERS_MAX, ERROR_TYPE_CHARACTERS_MAX
from queue_actor.jobs import JobError

Mode = Literal["async", "threads", "processes"]
"""Where a handler runs: in the worker's own event loop, in a thread, or in a child process."""

StopReason = Literal["cancelled", "lost", "time_limit", "stuck", "shutdown"]
"""Why a handler is to stop: the job was called off, its lease is lost, it took too long in all or without progress, or
the worker ends."""

JOB_PARAMETER: Final = "job"


class Retry(Exception):
    """Raised by a handler: try again, after so many seconds, or by the retry policy of the job."""

    def __init__(self, message: str = "", *, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Reject(Exception):
    """Raised by a handler: there is no use in trying again. The job is dead at once."""


class Stopped(Exception):
    """Raised by `RunningJob.check` in a handler that is to stop. Let it pass."""


class RunningJob:
    """What a handler is given: a job, and its way to the worker.

    Attributes:
        stopping: Why the handler is to stop, None as long as it is not. An asynchronous handler is cancelled as well, a
            child process is killed; a thread can only look here, or call `check`.
    """

    def __init__(self, job: Job, report: Callable[[bytes], None]) -> None:
        self._job = job
        self._report = report
        self.stopping: StopReason | None = None

    def __repr__(self) -> str:
        return f"<RunningJob {self.queue}/{self.id} {self.type} attempt={self.attempt}>"

    @property
    def queue(self) -> str:
        """Its queue."""
        return self._job.queue

    @property
    def id(self) -> int:
        """Its number in the queue, the same each time."""
        return self._job.id

    @property
    def type(self) -> str:
        """Its type."""
        return self._job.type

    @property
    def payload(self) -> Any:
        """Its payload, decoded; None if there is none."""
        return self._job.payload

    @property
    def meta(self) -> Mapping[str, str]:
        """What its producer said beside it."""
        return self._job.meta

    @property
    def traceparent(self) -> str | None:
        """The trace that it belongs to."""
        return self._job.traceparent

    @property
    def created_at(self) -> datetime:
        """When it was enqueued."""
        return self._job.created_at

    @property
    def attempt(self) -> int:
        """1 for the first time it is handed out."""
        return self._job.attempts

    @property
    def fence(self) -> int:
        """Grows with each lease: a store that remembers the highest one it has seen can refuse who comes late."""
        return leased(self._job).fence

    @property
    def lease_seconds(self) -> float:
        """How long it is leased; the worker sees to it that the lease goes on."""
        return leased(self._job).seconds

    def report(self, progress: Any) -> None:
        """Tell how far the work is: any JSON. It goes with the next heartbeat, within a second or so.

        To report is to show that the work goes on, for a handler with `stuck_seconds`.

        Raises:
            TypeError: It is no JSON.
        """
        self._report(msgspec.json.encode(progress))

    def check(self) -> None:
        """Pass if the work is to go on.

        Raises:
            Stopped: It is not.
        """
        if self.stopping is not None:
            raise Stopped(self.stopping)


# --- what comes of a job


class Done(msgspec.Struct, frozen=True, tag=True):
    """The job is done; its result, as JSON, if there is one."""

    result: bytes | None = None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The attempt failed. `traceback` is for the worker's log, and empty where the handler meant it."""

    error: JobError
    retry: bool = True
    retry_after_seconds: float | None = None
    traceback: str = ""


class Released(msgspec.Struct, frozen=True, tag=True):
    """The job goes back, unfinished."""

    delay_seconds: float = 0.0


class Dropped(msgspec.Struct, frozen=True, tag=True):
    """Nothing is told: the job is somebody else's."""


Outcome = Done | Failed | Released | Dropped


def failed_with(error: BaseException) -> Outcome:
    """What comes of a job whose handler has raised this."""
    match error:
        case Stopped():
            return Released()
        case Retry():
            return Failed(job_error("Retry", error), retry_after_seconds=error.after)
        case Reject():
            return Failed(job_error("Reject", error), retry=False)
        case _:
            lines = traceback.format_exception(error)
            return Failed(job_error(type(error).__qualname__, error), traceback="".join(lines))


def job_error(type_: str, message: object) -> JobError:
    """What the job's history is told. What would be too long is cut; halves of characters are escaped."""
    text = str(message)[:ERROR_MESSAGE_CHARACTERS_MAX]
    whole = text.encode("utf-8", "backslashreplace").decode()[:ERROR_MESSAGE_CHARACTERS_MAX]
    return JobError(type_[:ERROR_TYPE_CHARACTERS_MAX], whole)


# --- handlers


class Handler:
    """A function that does jobs of one type.

    Attributes:
        type: Of the jobs.
        queue: Whose jobs; a prefix such as `tenant:*` is allowed, and None is any.
        function: The function.
        mode: Where it runs; None, of a function that is not asynchronous, until the worker decides.
        run_seconds: How long it may take; None: as long as it likes.
        stuck_seconds: How long it may take without reporting progress; None: as long as it likes.
    """

    def __init__(
        self,
        type_: str,
        function: Callable[..., Any],
        *,
        queue: str | None = None,
        mode: Mode | None = None,
        run_seconds: float | None = None,
        stuck_seconds: float | None = None,
    ) -> None:
        """Look at the function's parameters.

        Raises:
            TypeError: It cannot be called with a payload and a job, or not in this mode.
        """
        is_async = inspect.iscoroutinefunction(function)
        if mode is not None and is_async != (mode == "async"):
            raise TypeError(f"the handler of {type_} is {'' if is_async else 'not '}asynchronous: it cannot run {mode}")
        self.type = type_
        self.queue = queue
        self.function = function
        self.mode: Mode | None = "async" if is_async else mode
        self.run_seconds = run_seconds
        self.stuck_seconds = stuck_seconds
        self._job_parameter: str | None = None
        self._payload_parameter: str | None = None
        self._payload_type: Any = Any
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            self._take(parameter)

    @property
    def key(self) -> str:
        """Names it among the handlers of a worker."""
        return self.type if self.queue is None else f"{self.queue}/{self.type}"

    def _take(self, parameter: inspect.Parameter) -> None:
        untyped = parameter.annotation is parameter.empty
        if parameter.annotation is RunningJob or (untyped and parameter.name == JOB_PARAMETER):
            self._job_parameter = parameter.name
        elif self._payload_parameter is None and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            self._payload_parameter = parameter.name
            self._payload_type = Any if untyped else parameter.annotation
        elif parameter.default is parameter.empty:
            raise TypeError(
                f"the handler of {self.type} has a parameter {parameter.name!r}: "
                f"it is given the payload, as a whole, and a RunningJob"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """A child process imports the function, and looks at it by itself."""
        return _restored, (self.type, self.function, self.queue, self.mode)

    @cached_property
    def _decoder(self) -> msgspec.json.Decoder[Any]:
        return msgspec.json.Decoder(self._payload_type)

    def _arguments(self, job: Job, running: RunningJob) -> dict[str, Any]:
        """What the function is called with.

        Raises:
            msgspec.DecodeError: The payload does not fit.
        """
        arguments: dict[str, Any] = {}
        if self._payload_parameter is not None:
            arguments[self._payload_parameter] = self._decoder.decode(job.payload_bytes)
        if self._job_parameter is not None:
            arguments[self._job_parameter] = running
        return arguments

    def perform(self, job: Job, running: RunningJob) -> Outcome:
        """Do a job, in whatever thread this is called in."""
        try:
            arguments = self._arguments(job, running)
        except msgspec.DecodeError as misfit:
            return _misfit(misfit)
        try:
            result = self.function(**arguments)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the job's history is where it belongs
            return failed_with(error)
        return _done(result)

    async def perform_async(self, job: Job, running: RunningJob) -> Outcome:
        """Do a job, in this task."""
        try:
            arguments = self._arguments(job, running)
        except msgspec.DecodeError as misfit:
            return _misfit(misfit)
        try:
            result = await self.function(**arguments)
        except anyio.get_cancelled_exc_class() as error:
            if anyio.current_effective_deadline() == -inf:
                raise
            return failed_with(error)  # nobody cancelled it: under asyncio, what it waited for was
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
            return failed_with(error)
        return _done(result)


class Handlers:
    """The handlers of a worker, by queue and type."""

    def __init__(self) -> None:
        self._handlers: dict[tuple[str | None, str], Handler] = {}

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._handlers.values())

    def add(self, handler: Handler) -> None:
        """Take one more.

        Raises:
            ValueError: There is one for the same jobs.
        """
        if (handler.queue, handler.type) in self._handlers:
            raise ValueError(f"there are two handlers of {handler.key}")
        self._handlers[handler.queue, handler.type] = handler

    def settled(self, mode: Mode) -> "Handlers":
        """The same, with a mode for those that have none yet."""
        handlers = Handlers()
        for one in self:
            limits = {"run_seconds": one.run_seconds, "stuck_seconds": one.stuck_seconds}
            handlers.add(Handler(one.type, one.function, queue=one.queue, mode=one.mode or mode, **limits))
        return handlers

    def find(self, queue: str, type_: str) -> Handler | None:
        """Who does jobs of this type in this queue: whoever names the queue, the longest prefix of it, or none."""
        prefixes = (f"{queue[:end]}*" for end in range(len(queue), -1, -1))
        for name in (queue, *prefixes, None):
            if handler := self._handlers.get((name, type_)):
                return handler
        return None

    def of_processes(self) -> dict[str, Handler]:
        """Those that run in processes, by their keys."""
        return {handler.key: handler for handler in self if handler.mode == "processes"}


def _restored(type_: str, function: Callable[..., Any], queue: str | None, mode: Mode | None) -> Handler:
    """A handler in a child process, where time is the worker's affair."""
    return Handler(type_, function, queue=queue, mode=mode)


def leased(job: Job | Extended) -> Lease:
    """The lease of a job that was dequeued, or extended."""
    assert job.lease is not None  # noqa: S101 - for the type checker
    return job.lease


def _misfit(misfit: Exception) -> Outcome:
    """No retry makes a payload fit. msgspec's message names the field: "Expected `int`, got `str` - at `$.width`"."""
    return Failed(job_error("InvalidPayload", misfit), retry=False)


def _done(result: Any) -> Outcome:
    """A result that is no JSON is no better the next time, and the work would be done twice."""
    try:
        return Done(None if result is None else msgspec.json.encode(result))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return Failed(job_error("InvalidResult", error), retry=False)
