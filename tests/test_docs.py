"""The documents tell the truth: what they list is what the code has, no more and no less."""

import json
import re
import sqlite3
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
import trio

from queue_actor.access import Scope
from queue_actor.jobs import FIRST_POLICY, DeathReason, JobState, Outcome
from queue_actor.rows import JOB_COLUMNS, QUEUE_COLUMNS
from queue_actor.schema import SCHEMA_VERSION
from queue_actor.service import open_engine
from queue_actor.settings import SETTINGS, Setting, Settings, help_text
from queue_actor.worker_metrics import METRICS
from tests.contract import document, v1
from tests.contract.document import CONTRACT, Route
from tests.contract.stack import Server, serving
from web import jobs, queues, views
from web.app import App
from web.auth import RULES, Rule
from web.bodies import Body, PolicyBody
from web.problems import PROBLEMS
from web.schemas import CONSUMER_HEADERS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("[!.]*/**/*.md")), *sorted(ROOT.glob("*.md"))]
README = (ROOT / "README.md").read_text()


def written(setting: Setting) -> str:
    return f"| `{setting.variable}` | {setting.default_text} | {setting.allowed} | {setting.description} |"


def test_the_readme_lists_every_setting_as_it_is() -> None:
    listed = [line for line in README.splitlines() if line.startswith("| `QUEUE_ACTOR_")]

    assert listed == [written(setting) for setting in SETTINGS]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_help_tells_flag_variable_and_effect_of_every_setting(setting: Setting) -> None:
    for text in (setting.flag, setting.variable, setting.description):
        assert text in help_text()


def test_every_limit_ends_in_its_unit() -> None:
    for setting in SETTINGS:
        if setting.name.endswith("_max"):
            assert re.search(
                r"(seconds|bytes|jobs|requests|queues|connections|waiters|readers|keys)_max$", setting.name
            )


# --- the contract


def test_the_contract_lists_every_code_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| ([^|]*) \|", CONTRACT, re.MULTILINE)
    listed = {(code, int(status)) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    served = {(code, kind.status) for code, kind in PROBLEMS.items()}

    assert {(code, status) for code, status in listed if status != 200} == served
    # Inside of an answer that is 200 as a whole.
    assert {code for code, status in listed if status == 200} <= set(PROBLEMS)


def test_the_contract_explains_every_advice() -> None:
    explained = set(re.findall(r"^\| `(\w+)` \| (?:nothing|it was|the request|the job)", CONTRACT, re.MULTILINE))

    assert explained == {kind.retryable for kind in PROBLEMS.values()}


def test_the_guide_for_authors_of_clients_has_every_code_as_it_is() -> None:
    told = [row[:4] for row in document.table(CONTRACT, "codes")]

    assert told == [
        [f"`{code}`", str(kind.status), f"`{kind.retryable}`", str(kind.retry_after_seconds or "")]
        for code, kind in PROBLEMS.items()
    ]


async def routes() -> set[Route]:
    """The routes that are served."""
    async with open_engine(Settings()) as engine:
        rules = list(App(engine, Settings()).url_map.iter_rules())
        await trio.lowlevel.checkpoint()
    return {
        (method, re.sub(r"<(?:\w+:)?(\w+?)_?>", r"{\1}", rule.rule))
        for rule in rules
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


async def test_the_contract_describes_every_route_with_its_methods() -> None:
    described = set(chain.from_iterable(section.routes for section in document.sections(CONTRACT)))

    assert described == await routes()


BODIES: dict[Route, type[msgspec.Struct]] = {
    ("POST", "/v1/queues/{queue}/enqueue"): jobs.ENQUEUE.type,
    ("POST", "/v1/queues/{queue}/dequeue"): jobs.DEQUEUE.type,
    ("POST", "/v1/dequeue"): jobs.DEQUEUE_MANY.type,
    **{("POST", f"/v1/queues/{{queue}}/jobs/{{id}}/{verb}"): one.type for verb, one in jobs.ONE.items()},
    **{("POST", f"/v1/{verb}"): many.type for verb, many in jobs.MANY.items()},
    **{("POST", f"/v1/queues/{{queue}}/{verb}"): many.type for verb, many in jobs.MANY.items()},
    ("POST", "/v1/queues/{queue}/release"): jobs.RELEASE_MANY.type,
    ("PUT", "/v1/queues/{queue}"): queues.POLICY.type,
    ("POST", "/v1/queues/{queue}/purge"): queues.PURGE.type,
    ("POST", "/v1/queues/{queue}/cancel"): queues.CANCEL.type,
    ("POST", "/v1/queues/{queue}/redrive"): queues.REDRIVE.type,
}
"""The body of each route. `test_every_route_takes_the_body_that_is_said_here` holds this to the code."""

STRUCTS = document.structs(*BODIES.values())
FIELDS = sorted({name for struct in STRUCTS for name in struct.__struct_fields__})


def fill_in(path: str) -> str:
    """A path that leads to a route."""
    return path.replace("{queue}", "q").replace("{id}", "1")


@pytest.mark.virtual_time
async def test_every_route_takes_the_body_that_is_said_here() -> None:
    async with serving(Settings()) as server:
        for method, path in sorted(await routes()):
            if path.startswith("/v1") and method != "GET":
                takes = BODIES.get((method, path), Body).__struct_fields__
                refused = [name for name in FIELDS if await is_unknown(server, method, path, name)]
                assert sorted({*refused, *takes}) == FIELDS, path
                assert not {*refused} & {*takes}, path


async def is_unknown(server: Server, method: str, path: str, field: str) -> bool:
    """Whether a route says that it does not know a field, which comes before another that nobody knows."""
    answer = await v1.ask(server, method, fill_in(path), {field: {}, "unheard_of": 1})
    assert answer.status == 400
    return bool(answer.json["detail"] == f"Object contains unknown field `{field}`")


def test_the_contract_shows_the_keys_of_every_body() -> None:
    shown = document.bodies(CONTRACT)

    # What the path names may be named again, and is not shown.
    assert {route: keys for route, keys in shown.items() if route[1].startswith("/v1")} == {
        route: {*struct.__struct_fields__} - ({"queue", "id"} if "{id}" in route[1] else set())
        for route, struct in BODIES.items()
    }


def test_the_contract_tells_name_value_and_default_of_every_field() -> None:
    for struct in STRUCTS:
        fields = document.own_fields(struct)
        if {field.name for field in fields} <= {"jobs", "dequeue"} and struct.__name__ != "ReleaseManyBody":
            continue  # shown with the body
        policy = FIRST_POLICY if struct is PolicyBody else None
        told = [row[:3] for row in document.table(CONTRACT, f"fields of {struct.__name__}")]

        assert told == [document.written(field, policy) for field in fields]
    assert document.tables(CONTRACT, "fields") <= {struct.__name__ for struct in STRUCTS}


@pytest.mark.parametrize("view", [views.JobView, views.LeaseView, views.AttemptView, views.QueueDocument])
def test_the_contract_tells_every_field_of_an_answer(view: type[msgspec.Struct]) -> None:
    told = [name for row in document.table(CONTRACT, f"answer of {view.__name__}") for name in row[0].split(", ")]

    assert told == [f"`{name}`" for name in view.__struct_fields__]


def test_the_contract_has_every_word_for_how_a_job_stands_or_ended() -> None:
    rows = {
        row[0]: row[1] for view in ("JobView", "AttemptView") for row in document.table(CONTRACT, f"answer of {view}")
    }
    for field, words in (("state", JobState), ("reason", DeathReason), ("outcome", Outcome)):
        assert set(re.findall(r"`(\w+)`", rows[f"`{field}`"])) == {*words}


@pytest.mark.virtual_time
async def test_the_contract_lists_every_query_parameter() -> None:
    source = "".join(path.read_text() for path in ROOT.glob("web/*.py"))
    names = {name for call in re.findall(r"refuse_query\(request(.*?)\)", source) for name in re.findall(r"\w+", call)}
    told = {
        route: {row[0].strip("`") for row in document.table(CONTRACT, f"query of {route}")}
        for route in document.tables(CONTRACT, "query")
    }
    names = names.union(*told.values())
    async with serving(Settings()) as server:
        for method, path in sorted(await routes()):
            if path.startswith("/v1"):
                taken = {name for name in names if await takes_parameter(server, method, path, name)}
                assert taken == told.pop(f"{method} {path}", set()), path
    assert not told


async def takes_parameter(server: Server, method: str, path: str, name: str) -> bool:
    """Whether a route takes a query parameter: given twice it is refused in one way or another."""
    answer = await v1.ask(server, method, f"{fill_in(path)}?{urlencode([(name, 1), (name, 1)])}")
    assert answer.problem == (400, "invalid", name)
    return bool(answer.json["detail"] == "the query parameter is given more than once")


def test_the_contract_names_every_header_of_this_server() -> None:
    source = "".join(path.read_text() for path in ROOT.glob("web/*.py"))
    own = r"(?:Queue|X|Idempotency)(?:-[A-Z]\w*)+"

    assert set(re.findall(rf"`({own})", CONTRACT)) == set(re.findall(rf'"({own})"', source))
    for header in ("Allow", "Retry-After", "Cache-Control", "Connection"):
        assert re.search(rf"`{header}\b", CONTRACT), header


def test_the_contract_lists_every_limit_with_its_default() -> None:
    section = next(section for section in document.sections(CONTRACT) if section.title == "Limits")
    told = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", section.text, re.MULTILINE))
    # Nobody but the actor notices how many commands it carries out before it answers them.
    kept = ("events_kept", "idempotency_seconds", "retention_seconds", "retention_jobs", "disk_reserve_bytes")
    names = [setting.name for setting in SETTINGS if setting.name.endswith(("_max", *kept))]
    names.remove("batch_requests_max")

    assert told == {name: f"{getattr(Settings(), name):.0f}" for name in names}


async def test_the_contract_lists_every_route_under_the_scope_that_it_needs() -> None:
    async with open_engine(Settings()) as engine:
        rules = list(App(engine, Settings()).url_map.iter_rules())
        await trio.lowlevel.checkpoint()
    needed = {
        (method, re.sub(r"<(?:\w+:)?(\w+?)_?>", r"{\1}", rule.rule)): asked(RULES[rule.endpoint])
        for rule in rules
        for method in (rule.methods or set()) - {"HEAD"}
    }
    told = {
        (method, path): scope
        for scope, listed in document.table(CONTRACT, "scopes")
        for method, path in re.findall(r"`([A-Z]+) (/\S*)`", listed)
    }

    assert told == needed


def asked(rule: Rule | None) -> str:
    """The scope of a route as the contract writes it."""
    if rule is None:
        return "none"
    if len(rule.scopes) == len(Scope):
        return f"any of {', '.join(f'`{scope}`' for scope in Scope)}"
    if len(rule.scopes) > 1:
        return "`consume` with a lease's token, `operate` without"
    return f"`{rule.scopes[0]}`{' on `*`' if rule.where == 'every' else ''}"


def learn(answer: Any, tokens: dict[tuple[str, int], str]) -> None:
    """Remember the tokens of an answer."""
    if isinstance(answer, dict):
        if isinstance(answer.get("lease"), dict) and "token" in answer["lease"]:
            tokens[answer["queue"], answer["id"]] = answer["lease"]["token"]
        answer = list(answer.values())
    if isinstance(answer, list):
        for part in answer:
            learn(part, tokens)


def show_token(body: Any, tokens: dict[tuple[str, int], str], named: dict[str, Any]) -> Any:
    """A request with the token of its job in the place of each `…`."""
    if isinstance(body, list):
        return [show_token(part, tokens, named) for part in body]
    if not isinstance(body, dict):
        return body
    named = named | {name: body[name] for name in ("queue", "id") if name in body}
    shown = {key: show_token(value, tokens, named) for key, value in body.items()}
    return shown | ({"token": tokens[named["queue"], named["id"]]} if shown.get("token") == "…" else {})


@pytest.mark.virtual_time
async def test_the_examples_in_the_contract_are_answered_as_they_are_shown() -> None:
    tokens: dict[tuple[str, int], str] = {}
    asked = set()
    async with serving(Settings()) as server:
        for example in document.examples(CONTRACT):
            path = re.match(r"/v1/queues/(?P<queue>\w+)(?:/jobs/(?P<id>\d+))?", example.target)
            named = {} if path is None else {"queue": path["queue"], "id": int(path["id"] or 0)}
            body = b"" if example.body is None else json.dumps(show_token(example.body, tokens, named)).encode()
            answer = await server.ask(example.method, example.target, body, example.headers)
            learn(answer.json, tokens)
            asked.add((example.method, re.sub(r"queues/\w+|jobs/\d+|\?.*", "", example.target)))

            assert document.difference(example.answer, answer.json) is None, f"web/README.md:{example.line}"
            assert answer.status == example.answer.get("status", 200)
            assert (
                example.answer_headers.items()
                <= {name: answer.headers.get(name.lower()) for name in example.answer_headers}.items()
            )
    assert len(asked) > 20


@pytest.mark.parametrize(
    ("said", "got", "where"),
    [
        ('{"a": 1}', {"a": 1}, None),
        ('{"a": 1}', {"a": 2}, ".a"),
        ('{"a": 1}', {"a": True}, ".a"),
        ('{"a": 1, …}', {"a": 1, "b": 2}, None),
        ('{"a": 1}', {"a": 1, "b": 2}, "the answer has"),
        ('{"a": 1, "b": 2}', {"b": 2, "a": 1}, "the answer has"),
        ('{"a": 1, "b": 2, …}', {"a": 1}, "the answer has"),
        ('{"a": …}', {"a": {"b": [1]}}, None),
        ('{"a": "…"}', {"a": "x"}, None),
        ('{"a": "x…z"}', {"a": "xyz"}, None),
        ('{"a": "x…z"}', {"a": "xy"}, ".a"),
        ('{"a": [1, …]}', {"a": [1, 2, 3]}, None),
        ('{"a": [1, 2]}', {"a": [1, 2, 3]}, ".a"),
        ('{"a": [1, 2, …]}', {"a": [1]}, ".a"),
        ('{"a": [{"b": 1, …}]}', {"a": [{"b": 2, "c": 3}]}, ".a[0].b"),
        ('{"a": {…}}', {"a": {"b": 1}}, None),
        ('{"a": []}', {"a": [1]}, ".a"),
        ('{"a": null}', {"a": 0}, ".a"),
        ('{"a": "[{…"}', {"a": "[{x"}, None),
    ],
)
def test_an_answer_is_compared_with_what_is_shown(said: str, got: Any, where: str | None) -> None:
    found = document.difference(document.read_json(said), got)

    assert found is None if where is None else (found or "").startswith(where)


def test_the_contract_names_every_header_of_the_consumer() -> None:
    for header in CONSUMER_HEADERS:
        assert f"`{header}`" in CONTRACT


def test_the_readme_tells_every_metric_of_a_worker_as_it_is() -> None:
    told = document.table(README, "worker metrics")

    assert told == [
        [f"`{name}`", metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.help]
        for name, metric in METRICS.items()
    ]


# --- the file of the store


STORE = (ROOT / "queue_actor/README.md").read_text()
STABLE = {table.strip("`"): re.findall(r"`(\w+)`", columns) for table, columns in document.table(STORE, "stable")}


FACTS = (
    "json_object('finished_at', facts ->> '$.finished_at', 'reason', facts ->> '$.reason', "
    "'history', facts -> '$.history') AS facts"
)


def test_the_stable_columns_are_all_those_of_jobs_but_for_the_facts() -> None:
    assert STABLE["jobs"] == [*(column for column in JOB_COLUMNS if column != "facts"), "payload"]
    assert set(STABLE["queues"]) <= set(QUEUE_COLUMNS)


@pytest.mark.parametrize("query", re.findall(r"^```sql\n(.*?)^```$", STORE, re.MULTILINE | re.DOTALL))
def test_the_queries_for_reports_need_nothing_but_the_stable_columns_and_find_something(query: str) -> None:
    """They are asked of the file of the last schema, of its stable columns, and of what is promised of the facts."""
    connection = sqlite3.connect(":memory:")
    connection.execute("ATTACH ? AS kept", (str(ROOT / f"tests/unit/schemas/{SCHEMA_VERSION}.sqlite"),))
    for table, columns in STABLE.items():
        named = ", ".join([*columns, *([FACTS] if table == "jobs" else [])])
        connection.execute(f"CREATE TABLE main.{table} AS SELECT {named} FROM kept.{table}")  # noqa: S608 - our own names
    connection.execute("DETACH kept")
    connection.execute("UPDATE queues SET paused = 1")
    connection.execute(
        "UPDATE jobs SET facts = json_set(facts, '$.finished_at', unixepoch()) WHERE kept_until IS NOT NULL"
    )
    assert connection.execute(query).fetchall()
    connection.close()


# --- all documents


def anchors(text: str) -> set[str]:
    """What a link into a document may name: its headings in lower case, spaces as hyphens, without punctuation."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*?)\)", path.read_text()):
        if not target.startswith("http"):
            linked = path.parent / target if target else path
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked.read_text()), anchor


def test_the_scripts_are_all_described() -> None:
    described = set(re.findall(r"^\| `(\w+\.sh)", (ROOT / "scripts/README.md").read_text(), re.MULTILINE))

    assert described == {path.name for path in (ROOT / "scripts").glob("*.sh")}
