"""Settings: each by variable and by flag, at its bounds and beyond them; and what is said of those that are wrong."""

from math import inf, nextafter
from typing import Any

import pytest

from queue_actor.settings import SETTINGS, Setting, SettingError, Settings, help_text, read_settings

DAY_SECONDS = 86_400.0
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# Settings that are not numbers: every text that is understood, and what it means.
TEXTS: dict[str, dict[str, Any]] = {
    "bind": {"0.0.0.0:80": "0.0.0.0:80", "unix:/run/q": "unix:/run/q", "fd://3": "fd://3"},
    "open": {"1": True, "0": False, "true": True, "false": False},
    "queues": {"auto": "auto", "declared": "declared"},
    "tokens": {"tokens.json": "tokens.json"},
    "data": {"jobs": "jobs", "/var/lib/queue-actor": "/var/lib/queue-actor"},
    "tls_cert": {"server.pem": "server.pem"},
    "tls_key": {"server.key": "server.key"},
    "tls_client_ca": {"clients.pem": "clients.pem"},
    "durability": {"full": "full", "normal": "normal"},
    "vacuum": {"1": True, "0": False},
    "engine": {"actor": "actor", "lock": "lock"},
    "metrics_queues": {"a": "a", "a, tenant:*,b": "a, tenant:*,b", "*": "*"},
    "log": {"json": "json", "text": "text"},
    "log_level": {text: text for text in ("debug", "transitions", "info", "warning", "error")},
    "trace": {"off": "off", "otlp": "otlp"},
}

# Numbers: default, least, most. These are promises to operators, written down a second time on purpose.
WHOLE: dict[str, tuple[int, int, int]] = {
    "sweep_slice": (1_000, 1, 100_000),
    "payload_bytes_max": (256 * KIB, 1, 16 * MIB),
    "request_bytes_max": (MIB, KIB, 64 * MIB),
    "reply_bytes_max": (4 * MIB, KIB, 64 * MIB),
    "batch_jobs_max": (1_000, 1, 10_000),
    "queues_max": (10_000, 1, 1_000_000),
    "queued_jobs_max": (1_000_000, 1, 100_000_000),
    "memory_bytes_max": (GIB, KIB, 1024 * GIB),
    "waiters_max": (1_000, 0, 100_000),
    "events_kept": (10_000, 1, 1_000_000),
    "readers_max": (200, 0, 10_000),
    "inbox_requests_max": (1_000, 1, 100_000),
    "batch_requests_max": (1_000, 1, 100_000),
    "connections_max": (2_000, 1, 100_000),
    "idempotency_keys_max": (100_000, 0, 10_000_000),
    "dead_retention_jobs": (100_000, 0, 100_000_000),
    "retention_jobs": (100_000, 0, 100_000_000),
    "disk_reserve_bytes": (64 * MIB, 0, 1024 * GIB),
    "recent_jobs": (10_000, 1, 10_000_000),
    "metrics_queues_max": (200, 1, 10_000),
    "ready_initial": (64, 1, 10_000_000),
    "compact_slice": (4_096, 1_000, 10_000_000),
}
BROKEN: dict[str, tuple[float, float, float]] = {
    "lease_seconds": (300.0, 0.1, 43_200.0),
    "lease_seconds_max": (43_200.0, 0.1, 43_200.0),
    "sweep_seconds": (1.0, 0.01, 60.0),
    "wait_seconds_max": (20.0, 0.0, 60.0),
    "delay_seconds_max": (3_660 * DAY_SECONDS, 0.0, 3_660 * DAY_SECONDS),
    "idle_seconds": (75.0, 0.1, 3_600.0),
    "slow_request_seconds": (1.0, 0.001, 3_600.0),
    "slow_batch_seconds": (0.1, 0.001, 3_600.0),
    "slow_commit_seconds": (1.0, 0.001, 3_600.0),
    "stall_seconds": (5.0, 0.0, 3_600.0),
    "idempotency_seconds": (86_400.0, 0.0, 30 * DAY_SECONDS),
    "dead_retention_seconds": (30 * DAY_SECONDS, 0.0, 3_660 * DAY_SECONDS),
    "retention_seconds": (3_600.0, 0.0, 3_660 * DAY_SECONDS),
    "ready_growth": (1.5, nextafter(1, 2), 8.0),  # more than 1
    "ready_compact": (0.5, 0.1, 0.95),
}
NUMBERS: dict[str, tuple[float, float, float]] = WHOLE | BROKEN

# What must be set as well, so that a value at its bound does not contradict the default of another.
COMPANIONS = {
    "tls_cert": ("--tls-key", "server.key"),
    "tls_key": ("--tls-cert", "server.pem"),
    "tls_client_ca": ("--tls-key", "server.key", "--tls-cert", "server.pem"),
    "lease_seconds_max": ("--lease-seconds", "0.1"),
    "request_bytes_max": ("--payload-bytes-max", "1"),
    "payload_bytes_max": ("--request-bytes-max", str(64 * MIB)),
}


def variable(name: str) -> str:
    return "QUEUE_ACTOR_" + name.upper()


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def read(name: str, text: str) -> Any:
    """The value of a setting given as a variable; given as a flag in either way it must be the same."""
    companions = COMPANIONS.get(name, ())
    values = [
        read_settings({variable(name): text}, companions),
        read_settings({}, [flag(name), text, *companions]),
        read_settings({}, [*companions, f"{flag(name)}={text}"]),
    ]
    assert values[0] == values[1] == values[2]
    return getattr(values[0], name)


def refusals(name: str, text: str) -> list[str]:
    """What is said of a wrong value, given in all three ways; each must name where it came from."""
    messages = []
    for source, environment, arguments in (
        (variable(name), {variable(name): text}, []),
        (flag(name), {}, [flag(name), text]),
        (flag(name), {}, [f"{flag(name)}={text}"]),
    ):
        with pytest.raises(SettingError) as refused:
            read_settings(environment, arguments)
        assert str(refused.value).startswith(f"{source}: {text!r} is not ")
        messages.append(str(refused.value))
    return messages


def by_name(setting: Setting) -> str:
    return setting.name


# --- the list


def test_every_setting_is_tested_here() -> None:
    assert [setting.name for setting in SETTINGS] == list(Settings.__struct_fields__)
    assert sorted(setting.name for setting in SETTINGS) == sorted([*TEXTS, *NUMBERS])


@pytest.mark.parametrize("setting", SETTINGS, ids=by_name)
def test_every_setting_has_a_default_that_needs_no_environment(setting: Setting) -> None:
    value = getattr(read_settings({}, []), setting.name)
    assert value == setting.default
    if setting.name in NUMBERS:
        assert value == NUMBERS[setting.name][0]


@pytest.mark.parametrize("setting", SETTINGS, ids=by_name)
def test_a_limit_ends_in_its_unit(setting: Setting) -> None:
    words = setting.name.split("_")
    assert setting.unit == next((unit for unit in ("seconds", "bytes", "jobs") if unit in words), "")
    assert setting.variable == variable(setting.name)
    assert setting.flag == flag(setting.name)


# --- values


@pytest.mark.parametrize(("name", "text", "value"), [(n, t, v) for n, known in TEXTS.items() for t, v in known.items()])
def test_a_text_is_read_by_variable_and_by_flag(name: str, text: str, value: Any) -> None:
    read_value = read(name, text)
    assert read_value == value
    assert type(read_value) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(
            (name, text)
            for name in ("engine", "log", "log_level", "durability", "trace")
            for text in ("", "ACTOR", "Json", "other", "1", "ï")
        ),
        *(
            (name, text)
            for name in ("open", "vacuum")
            for text in ("", "2", "-1", "yes", "on", "01", "1.0", "١", "None")
        ),
        ("bind", "ü:80"),
    ],
)
def test_any_other_text_is_refused(name: str, text: str) -> None:
    expected = {"open": "1 or 0", "vacuum": "1 or 0", "bind": "plain text"}.get(name, "one of ")
    for message in refusals(name, text):
        assert expected in message
        for choice in TEXTS[name] if expected == "one of " else ():
            assert choice in message


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_may_be_as_small_and_as_large_as_its_bounds(name: str) -> None:
    for bound in NUMBERS[name][1:]:
        value = read(name, str(bound))
        assert value == bound
        assert type(value) is (int if name in WHOLE else float)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_beyond_its_bounds_is_refused_and_the_bounds_are_told(name: str) -> None:
    _, least, most = NUMBERS[name]
    beyond = (least - 1, most + 1) if name in WHOLE else (nextafter(least, -inf), nextafter(most, inf))
    told_least = "> 1" if name == "ready_growth" else f">= {plain(least)}"
    for value in (*beyond, -1, -(10**9), 10**30):
        for message in refusals(name, str(value)):
            assert message.endswith(f"number {told_least} and <= {plain(most)}")
            assert ("whole" in message) is (name in WHOLE)


def plain(number: float) -> str:
    """A number as people write it: 16777216, and not 1.67772e+07."""
    return str(int(number)) if number == int(number) else str(number)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "x",
        "١",
        "１",
        "1_000",
        "1,000",
        "nan",
        "NaN",
        "-nan",
        "inf",
        "-inf",
        "Infinity",
        "1e400",
        "0x10",
        "0b1",
        "1k",
        "1 0",
        "5;",
        "--5",
        "+5",
        "5.",
        ".5",
        "1s",
        "true",
        "None",
        "²",
        "5\xa0",
        "5\x00",
    ],
)
def test_what_is_no_plain_number_is_refused(name: str, text: str) -> None:
    refusals(name, text)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("text", ["1000.5", "1e-1", "1500.0000001"])
def test_a_broken_number_is_refused_where_a_whole_one_is_meant(name: str, text: str) -> None:
    refusals(name, text)


@pytest.mark.parametrize("text", [" 5000 ", "5000\n", "\t5000", "5e3", "5000.0"])
def test_spaces_around_a_number_are_no_matter_nor_is_an_exponent(text: str) -> None:
    """Files with one variable a line leave a line feed; 5e3 means one thing only."""
    assert read("sweep_slice", text) == 5_000


# --- where they come from


def test_a_flag_wins_over_a_variable() -> None:
    assert read_settings({"QUEUE_ACTOR_LEASE_SECONDS": "7"}, ["--lease-seconds", "8"]).lease_seconds == 8.0


def test_a_wrong_variable_is_refused_although_a_flag_wins_over_it() -> None:
    with pytest.raises(SettingError, match=r"^QUEUE_ACTOR_LEASE_SECONDS: 'x' is not"):
        read_settings({"QUEUE_ACTOR_LEASE_SECONDS": "x"}, ["--lease-seconds", "8"])


def test_the_last_of_two_equal_flags_wins() -> None:
    assert read_settings({}, ["--lease-seconds=7", "--lease-seconds", "8"]).lease_seconds == 8.0


def test_variables_and_flags_add_up() -> None:
    settings = read_settings({"QUEUE_ACTOR_LOG": "text", "QUEUE_ACTOR_OPEN": "1"}, ["--engine=lock", "--bind", "a:1"])
    assert settings == Settings(log="text", open=True, engine="lock", bind="a:1")


def test_a_value_may_contain_an_equals_sign() -> None:
    assert read_settings({}, ["--bind=unix:/a=b"]).bind == "unix:/a=b"


@pytest.mark.parametrize(
    "name",
    [
        "QUEUE_ACTOR_",
        "QUEUE_ACTOR_LEASE_SECOND",
        "QUEUE_ACTOR_LEASE-SECONDS",
        "QUEUE_ACTOR_lease_seconds",
        "QUEUE_ACTOR_SERVICE",
        "QUEUE_ACTOR_TOKENS_FILE",
        "QUEUE_ACTOR_URLS",
        "QUEUE_ACTOR_POR",
    ],
)
def test_an_unknown_variable_is_refused_by_name(name: str) -> None:
    with pytest.raises(SettingError, match=f"^{name}: there is no such setting; --help"):
        read_settings({name: "1"}, [])


@pytest.mark.parametrize(
    "name",
    [
        "QUEUE_ACTOR_SERVICE_HOST",
        "QUEUE_ACTOR_SERVICE_PORT",
        "QUEUE_ACTOR_SERVICE_PORT_HTTP",
        "QUEUE_ACTOR_PORT",
        "QUEUE_ACTOR_PORT_8080_TCP",
        "QUEUE_ACTOR_PORT_8080_TCP_ADDR",
        "QUEUE_ACTOR_URL",
        "QUEUE_ACTOR_TOKEN",
        "PATH",
        "QUEUE",
        "QUEUE_LEASE_SECONDS",
        "LEASE_SECONDS",
        "queue_actor_lease_seconds",
        "XQUEUE_ACTOR_LOG",
    ],
)
def test_names_that_others_put_into_the_environment_are_ignored(name: str) -> None:
    assert read_settings({name: "tcp://10.0.0.1:8080"}, []) == Settings()


@pytest.mark.parametrize(
    "argument",
    [
        "--lease",
        "--lease_seconds",
        "--Lease-Seconds",
        "-lease-seconds",
        "lease-seconds",
        "--",
        "-",
        "",
        "=",
        "--help",
        "--lease-second=5",
        "5",
    ],
)
def test_an_unknown_flag_is_refused_by_name(argument: str) -> None:
    with pytest.raises(SettingError, match=f"^{argument}: there is no such flag; --help"):
        read_settings({}, [argument, "5"])


def test_a_flag_needs_a_value() -> None:
    with pytest.raises(SettingError, match=r"^--open: needs a value"):
        read_settings({}, ["--log", "text", "--open"])


# --- values that contradict each other


def test_a_lease_is_no_longer_than_the_longest() -> None:
    arguments = ["--lease-seconds-max", "60", "--lease-seconds"]
    assert read_settings({}, [*arguments, "60"]).lease_seconds == 60.0
    with pytest.raises(SettingError, match=r"^QUEUE_ACTOR_LEASE_SECONDS: 60\.5 .* QUEUE_ACTOR_LEASE_SECONDS_MAX, 60$"):
        read_settings({}, [*arguments, "60.5"])


def test_two_values_that_contradict_each_other_by_little_are_told_apart() -> None:
    with pytest.raises(SettingError, match=r"SECONDS: 12345\.678 is more than QUEUE_ACTOR_LEASE_SECONDS_MAX, 12345.67"):
        read_settings({}, ["--lease-seconds-max", "12345.67", "--lease-seconds", "12345.678"])


def test_a_payload_fits_into_a_request() -> None:
    arguments = ["--request-bytes-max", "2048", "--payload-bytes-max"]
    assert read_settings({}, [*arguments, "2048"]).payload_bytes_max == 2_048
    with pytest.raises(
        SettingError, match=r"^QUEUE_ACTOR_PAYLOAD_BYTES_MAX: 2049 .* QUEUE_ACTOR_REQUEST_BYTES_MAX, 2048$"
    ):
        read_settings({}, [*arguments, "2049"])


def test_a_default_may_contradict_a_value_too() -> None:
    with pytest.raises(SettingError, match="QUEUE_ACTOR_LEASE_SECONDS: 300 is more than"):
        read_settings({"QUEUE_ACTOR_LEASE_SECONDS_MAX": "299"}, [])


@pytest.mark.parametrize("name", ["TLS_CERT", "TLS_KEY"])
def test_a_certificate_and_its_key_are_of_no_use_without_each_other(name: str) -> None:
    with pytest.raises(SettingError, match=r"^QUEUE_ACTOR_TLS_CERT and QUEUE_ACTOR_TLS_KEY: "):
        read_settings({f"QUEUE_ACTOR_{name}": "server.pem"}, [])


def test_nobody_is_asked_for_a_certificate_without_tls() -> None:
    with pytest.raises(SettingError, match=r"^QUEUE_ACTOR_TLS_CLIENT_CA: is no use without QUEUE_ACTOR_TLS_CERT$"):
        read_settings({"QUEUE_ACTOR_TLS_CLIENT_CA": "clients.pem"}, [])


# --- help


@pytest.mark.parametrize("setting", SETTINGS, ids=by_name)
def test_help_tells_the_flag_the_variable_the_default_and_the_effect_of_each_setting(setting: Setting) -> None:
    lines = help_text().splitlines()
    (at,) = (n for n, line in enumerate(lines) if line.startswith(f"  {setting.flag} "))
    assert lines[at + 1] == f"      {setting.variable}: {setting.description}"
    assert setting.description
    if setting.name in NUMBERS:
        default, least, most = NUMBERS[setting.name]
        bounds = f"{'> 1' if setting.name == 'ready_growth' else f'>= {plain(least)}'} and <= {plain(most)}"
        assert lines[at] == f"  {setting.flag} (default {plain(default)}; {bounds})"
    elif setting.choices:
        assert lines[at] == f"  {setting.flag} (default {setting.default}; {', '.join(TEXTS[setting.name])})"
    else:
        assert lines[at] == f"  {setting.flag} (default {setting.default})"


def test_every_bound_in_the_help_can_be_set_as_it_is_written() -> None:
    """A figure that is rounded for display would be refused, or would not be the bound."""
    for setting in SETTINGS:
        if setting.name in NUMBERS:
            *_, most = setting.bounds.split()
            assert read(setting.name, most) == NUMBERS[setting.name][2]


@pytest.mark.parametrize("text", ["a b", "_other", "a*b", "a,,b", "a,", "x" * 81])
def test_queues_with_metrics_are_named_as_queues_are(text: str) -> None:
    with pytest.raises(SettingError, match=r"^QUEUE_ACTOR_METRICS_QUEUES: .* is neither a queue's name nor a prefix"):
        read_settings({"QUEUE_ACTOR_METRICS_QUEUES": text}, [])
