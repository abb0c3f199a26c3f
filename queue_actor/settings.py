"""Every setting: its name, unit, default, bounds and effect, declared once.

A setting `lease_seconds` is the variable `QUEUE_ACTOR_LEASE_SECONDS` and the flag `--lease-seconds`. `--help`, the
table in the root README and the validation are all made from the declarations below.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

PREFIX = "QUEUE_ACTOR_"

# Names that others put into the environment: Kubernetes for a service called queue-actor, and this project's client.
FOREIGN_PREFIXES = ("QUEUE_ACTOR_SERVICE_", "QUEUE_ACTOR_PORT")
FOREIGN_NAMES = frozenset({"QUEUE_ACTOR_URL", "QUEUE_ACTOR_TOKEN"})

KIB = 1024
MIB = 1024 * KIB
DAY_SECONDS = 24 * 3600
METRICS_QUEUE = re.compile(r"\*|[A-Za-z0-9][A-Za-z0-9_.:-]{0,79}\*?")
DURABLE_RETENTION_JOBS = 1_000_000  # a disk has more room than memory


class SettingError(Exception):
    """A setting that cannot be used. The message names the variable or flag, and says what would be right."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, valid. Limits end in their unit; reaching one is a refusal, never a clamp."""

    bind: Annotated[
        str,
        Meta(description="where to listen: HOST:PORT, unix:PATH, or fd://NUMBER for a socket handed over"),
    ] = "127.0.0.1:8080"
    open: Annotated[
        bool,
        Meta(description="serve other hosts than loopback although anyone who reaches the port may do anything"),
    ] = False
    tokens: Annotated[
        str,
        Meta(description="file of access tokens, which every request needs then; without one the server is open"),
    ] = ""
    tls_cert: Annotated[
        str,
        Meta(description="file of the certificate and its chain, in PEM; with it HTTPS is served, and nothing else"),
    ] = ""
    tls_key: Annotated[str, Meta(description="file of the key of the certificate, in PEM and not encrypted")] = ""
    tls_client_ca: Annotated[
        str, Meta(description="file of certificates, in PEM, one of which has to have signed that of each client")
    ] = ""
    data: Annotated[
        str,
        Meta(description="directory that keeps the jobs; without one they are lost when the process ends"),
    ] = ""
    durability: Annotated[
        Literal["full", "normal"],
        Meta(description="with a data directory: whether an answer waits for the disk (full), or only for the kernel"),
    ] = "full"
    disk_reserve_bytes: Annotated[
        int, Meta(ge=0, le=1024 * 1024 * MIB, description="free bytes below which no jobs are enqueued any more")
    ] = 64 * MIB
    recent_jobs: Annotated[
        int,
        Meta(ge=1, le=10_000_000, description="finished jobs that stay in memory too where there is a data directory"),
    ] = 10_000
    vacuum: Annotated[
        bool, Meta(description="rewrite the file of the data directory at the start, which gives back what it has free")
    ] = False
    engine: Annotated[
        Literal["actor", "lock"],
        Meta(description="what owns the queue: the actor, or the mutex it is compared with"),
    ] = "actor"
    log: Annotated[Literal["json", "text"], Meta(description="the shape of log lines on standard error")] = "json"
    log_level: Annotated[
        Literal["debug", "transitions", "info", "warning", "error"],
        Meta(description="the least level that is logged; requests are logged at info, what becomes of jobs below"),
    ] = "info"
    slow_request_seconds: Annotated[
        float, Meta(ge=0.001, le=3_600, description="time above which a request is warned about, but for its waiting")
    ] = 1.0
    slow_batch_seconds: Annotated[
        float, Meta(ge=0.001, le=3_600, description="time above which the applying of a batch is warned about")
    ] = 0.1
    slow_commit_seconds: Annotated[
        float, Meta(ge=0.001, le=3_600, description="time above which a commit is warned about")
    ] = 1.0
    stall_seconds: Annotated[
        float, Meta(ge=0, le=3_600, description="time after which a server that stands still logs where; 0: never")
    ] = 5.0
    trace: Annotated[
        Literal["off", "otlp"],
        Meta(
            description="where spans are sent to: nowhere, or by OTLP as the OTEL_ variables say (needs the extra otel)"
        ),
    ] = "off"

    lease_seconds: Annotated[float, Meta(ge=0.1, le=43_200, description="length of a lease that names none")] = 300.0
    lease_seconds_max: Annotated[float, Meta(ge=0.1, le=43_200, description="longest lease that may be asked for")] = (
        43_200.0
    )
    sweep_seconds: Annotated[
        float, Meta(ge=0.01, le=60, description="longest pause between two sweeps for stale and due jobs")
    ] = 1.0
    sweep_slice: Annotated[int, Meta(ge=1, le=100_000, description="jobs that one sweep command moves at most")] = 1_000
    wait_seconds_max: Annotated[float, Meta(ge=0, le=60, description="longest time a dequeue may wait for a job")] = (
        20.0
    )
    delay_seconds_max: Annotated[float, Meta(ge=0, le=3_660 * DAY_SECONDS, description="longest delay of a job")] = (
        3_660.0 * DAY_SECONDS
    )

    payload_bytes_max: Annotated[int, Meta(ge=1, le=16 * MIB, description="largest payload of a job")] = 256 * KIB
    request_bytes_max: Annotated[int, Meta(ge=KIB, le=64 * MIB, description="largest request body")] = MIB
    reply_bytes_max: Annotated[
        int, Meta(ge=KIB, le=64 * MIB, description="payload bytes after which a dequeue of many jobs stops early")
    ] = 4 * MIB
    batch_jobs_max: Annotated[int, Meta(ge=1, le=10_000, description="jobs in one request")] = 1_000
    queues_max: Annotated[int, Meta(ge=1, le=1_000_000, description="queues that may exist")] = 10_000
    queued_jobs_max: Annotated[
        int, Meta(ge=1, le=100_000_000, description="jobs that wait or are in progress, in all queues together")
    ] = 1_000_000
    memory_bytes_max: Annotated[
        int, Meta(ge=KIB, le=1024 * 1024 * MIB, description="bytes of payloads kept, finished jobs included")
    ] = 1024 * MIB
    waiters_max: Annotated[int, Meta(ge=0, le=100_000, description="dequeues that may be parked at once")] = 1_000
    events_kept: Annotated[
        int, Meta(ge=1, le=1_000_000, description="events that those who read them may be behind, while somebody does")
    ] = 10_000
    readers_max: Annotated[int, Meta(ge=0, le=10_000, description="readers of events at once")] = 200
    inbox_requests_max: Annotated[int, Meta(ge=1, le=100_000, description="commands that may wait for the actor")] = (
        1_000
    )
    batch_requests_max: Annotated[
        int, Meta(ge=1, le=100_000, description="commands the actor carries out before it answers them")
    ] = 1_000
    connections_max: Annotated[int, Meta(ge=1, le=100_000, description="connections open at once")] = 2_000
    idle_seconds: Annotated[
        float, Meta(ge=0.1, le=3_600, description="how long a connection may idle after a served request")
    ] = 75.0

    queues: Annotated[
        Literal["auto", "declared"],
        Meta(description="whether an enqueue makes a queue that does not exist, or only an operator does"),
    ] = "auto"
    idempotency_seconds: Annotated[
        float, Meta(ge=0, le=30 * DAY_SECONDS, description="how long an answer is remembered under its Idempotency-Key")
    ] = 86_400.0
    idempotency_keys_max: Annotated[
        int, Meta(ge=0, le=10_000_000, description="answers that are remembered; the oldest go first")
    ] = 100_000
    dead_retention_seconds: Annotated[
        float, Meta(ge=0, le=3_660 * DAY_SECONDS, description="how long dead jobs are kept")
    ] = 30.0 * DAY_SECONDS
    dead_retention_jobs: Annotated[
        int, Meta(ge=0, le=100_000_000, description="how many dead jobs are kept; one that is lost so is warned about")
    ] = 100_000
    retention_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=3_660 * DAY_SECONDS,
            description="how long concluded and cancelled jobs are kept; with a data directory a day",
        ),
    ] = 3_600.0
    retention_jobs: Annotated[
        int,
        Meta(
            ge=0,
            le=100_000_000,
            description="how many concluded and cancelled jobs are kept; with a data directory 1000000",
        ),
    ] = 100_000

    metrics_queues: Annotated[
        str,
        Meta(
            description="queues with metrics of their own: names or prefixes (tenant:*), with commas; none: the busiest"
        ),
    ] = ""
    metrics_queues_max: Annotated[
        int, Meta(ge=1, le=10_000, description="how many queues have metrics of their own; the rest is summed up")
    ] = 200

    ready_initial: Annotated[int, Meta(ge=1, le=10_000_000, description="slots a ready array starts with")] = 64
    ready_growth: Annotated[
        float, Meta(gt=1, le=8, description="factor by which a full ready array grows, in bounded steps")
    ] = 1.5
    ready_compact: Annotated[
        float, Meta(ge=0.1, le=0.95, description="empty share of the used slots above which the array is compacted")
    ] = 0.5
    compact_slice: Annotated[
        int, Meta(ge=1_000, le=10_000_000, description="slots that one command compacts or grows at most")
    ] = 4_096


class Setting(msgspec.Struct, frozen=True):
    """One declaration, taken apart for people: `--help`, the README and error messages."""

    name: str
    default: Any
    unit: str
    description: str
    bounds: str
    choices: tuple[str, ...]
    annotation: Any

    @property
    def variable(self) -> str:
        """The environment variable, such as `QUEUE_ACTOR_LEASE_SECONDS`."""
        return PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """The command line flag, such as `--lease-seconds`."""
        return "--" + self.name.replace("_", "-")

    @property
    def default_text(self) -> str:
        """The default as it is written."""
        return f"{self.default:.15g}" if isinstance(self.default, float) else str(self.default)

    @property
    def allowed(self) -> str:
        """What may be written; empty if that is plain text."""
        return ", ".join(self.choices) or self.bounds


def _declarations() -> Iterator[Setting]:
    for name, annotation in get_type_hints(Settings, include_extras=True).items():
        plain, meta = get_args(annotation)
        bounds = [
            f"{sign} {bound:.15g}"
            for sign, bound in ((">=", meta.ge), (">", meta.gt), ("<=", meta.le))
            if bound is not None
        ]
        yield Setting(
            name=name,
            default=getattr(Settings(), name),
            unit=next((unit for unit in ("seconds", "bytes", "jobs") if unit in name), ""),
            description=meta.description,
            bounds=" and ".join(bounds),
            choices=get_args(plain),
            annotation=annotation,
        )


SETTINGS: tuple[Setting, ...] = tuple(_declarations())
_BY_VARIABLE = {setting.variable: setting for setting in SETTINGS}
_BY_FLAG = {setting.flag: setting for setting in SETTINGS}


def read_settings(environment: Mapping[str, str], arguments: Sequence[str]) -> Settings:
    """Settings from the environment, overridden by flags (`--name value` or `--name=value`).

    Raises:
        SettingError: An unknown name, a value out of bounds, or values that contradict each other.
    """
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable in FOREIGN_NAMES or variable.startswith(FOREIGN_PREFIXES):
            continue
        if variable not in _BY_VARIABLE:
            raise SettingError(f"{variable}: there is no such setting; --help lists them")
        values[_BY_VARIABLE[variable].name] = _value(_BY_VARIABLE[variable], variable, text)
    for flag, text in _flags(arguments):
        values[_BY_FLAG[flag].name] = _value(_BY_FLAG[flag], flag, text)
    if values.get("data"):
        values = {"retention_seconds": float(DAY_SECONDS), "retention_jobs": DURABLE_RETENTION_JOBS} | values
    settings = Settings(**values)
    _refuse_contradictions(settings)
    return settings


def _refuse_contradictions(settings: Settings) -> None:
    if settings.lease_seconds > settings.lease_seconds_max:
        raise SettingError(
            f"{PREFIX}LEASE_SECONDS: {settings.lease_seconds:.15g} is more than "
            f"{PREFIX}LEASE_SECONDS_MAX, {settings.lease_seconds_max:.15g}"
        )
    for part in settings.metrics_queues.split(",") if settings.metrics_queues else ():
        if not METRICS_QUEUE.fullmatch(part.strip()):
            raise SettingError(
                f"{PREFIX}METRICS_QUEUES: {part!r} is neither a queue's name nor a prefix with a * at its end"
            )
    if settings.payload_bytes_max > settings.request_bytes_max:
        raise SettingError(
            f"{PREFIX}PAYLOAD_BYTES_MAX: {settings.payload_bytes_max} is more than "
            f"{PREFIX}REQUEST_BYTES_MAX, {settings.request_bytes_max}"
        )
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise SettingError(f"{PREFIX}TLS_CERT and {PREFIX}TLS_KEY: one is no use without the other")
    if settings.tls_client_ca and not settings.tls_cert:
        raise SettingError(f"{PREFIX}TLS_CLIENT_CA: is no use without {PREFIX}TLS_CERT")


def _flags(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = iter(arguments)
    for argument in rest:
        flag, equals, text = argument.partition("=")
        if flag not in _BY_FLAG:
            raise SettingError(f"{argument}: there is no such flag; --help lists them")
        if not equals:
            following = next(rest, None)
            if following is None:
                raise SettingError(f"{flag}: needs a value")
            text = following
        yield flag, text


def _value(setting: Setting, source: str, text: str) -> Any:
    try:
        # Digits of other scripts and underscores are numbers to Python, and typing errors to people.
        if not text.isascii() or (setting.default.__class__ in {int, float} and "_" in text):
            raise msgspec.ValidationError("not a plain number")  # noqa: TRY301 - one message for every reason
        value = msgspec.convert(text.strip(), setting.annotation, strict=False)
    except msgspec.ValidationError as error:
        raise SettingError(f"{source}: {text!r} is not {_expected(setting)}") from error
    return value


def _expected(setting: Setting) -> str:
    if setting.choices:
        return "one of " + ", ".join(setting.choices)
    match setting.default:
        case bool():
            return "1 or 0"
        case int():
            return f"a whole number {setting.bounds}"
        case float():
            return f"a number {setting.bounds}"
        case _:
            return "plain text"


def help_text() -> str:
    """What `--help` prints: each setting with its variable, default, bounds and effect."""
    lines = [
        "usage: python -m web [--flag value ...]",
        "",
        "Each flag is also an environment variable; a flag wins. Sizes are plain numbers in the unit of the name.",
        "",
    ]
    for setting in SETTINGS:
        allowed = f"; {setting.allowed}" if setting.allowed else ""
        lines.append(f"  {setting.flag} (default {setting.default_text}{allowed})")
        lines.append(f"      {setting.variable}: {setting.description}")
    return "\n".join(lines)
