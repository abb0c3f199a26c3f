"""The dashboard's files over HTTP; tests/browser looks at what they do."""

import re
from functools import reduce
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import pytest

from queue_actor.jobs import DEFAULT_QUEUE_POLICY, FIRST_POLICY, QueuePolicy
from queue_actor.settings import Settings
from tests.contract import v1
from tests.contract.stack import Server, serving
from tests.contract.tokens import Tokens
from tests.fakes import FakeClock
from web.bodies import PolicyBody, RetryBody
from web.dashboard import FILES, PAGE
from web.fields import FileName

pytestmark = pytest.mark.virtual_time

POLICY = {
    *("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"),
    *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
}


async def test_the_root_leads_to_it_relatively(server: Server) -> None:
    answer = await v1.ask(server, "GET", "/")

    assert (answer.status, answer.headers["location"], answer.body) == (307, "ui", b"")


async def test_its_page_may_load_and_ask_nothing_but_this_server(server: Server) -> None:
    answer = await v1.ask(server, "GET", "/ui")

    assert set(answer.headers["content-security-policy"].split("; ")) == POLICY
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for address in re.findall(r'(?:href|src|action)="([^"]*)"', answer.body.decode()):
        assert address.startswith(("#", "ui/")), address
    assert not re.search(rb"<style|<script>|style=|\son\w+=", answer.body)


@pytest.mark.parametrize("name", get_args(FileName))
async def test_each_of_its_files_is_sent_and_need_not_be_sent_again(server: Server, name: str) -> None:
    answer = await v1.ask(server, "GET", f"/ui/{name}")
    assert answer.status == 200
    assert answer.body == (FILES / name).read_bytes()
    kind = "text/css" if name.endswith(".css") else "text/javascript"
    assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
    again = await v1.ask(server, "GET", f"/ui/{name}", If_None_Match=answer.headers["etag"])
    assert (again.status, again.body) == (304, b"")


def test_all_its_files_are_described() -> None:
    assert {path.name for path in FILES.iterdir()} == {PAGE, *get_args(FileName)}


def test_its_files_can_be_read_in_one_sitting() -> None:
    for path in FILES.iterdir():
        assert len(path.read_text().splitlines()) <= 400, path.name


@pytest.mark.parametrize("name", ["index.html", "nothing.js", "..", "%2e%2e%2fdocs.css", "app.js%00", "APP.JS", ""])
async def test_what_is_none_of_them_is_not_found(server: Server, name: str) -> None:
    assert (await server.ask("GET", f"/ui/{name}")).problem == (404, "not_found", None)


async def test_a_link_elsewhere_may_lead_to_it_and_to_nothing_else(server: Server) -> None:
    followed = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    for path, status in (("/", 307), ("/ui", 200), ("/docs", 200), ("/ui/app.js", 403), ("/v1/overview", 403)):
        assert (await v1.ask(server, "GET", path, **followed)).status == status, path
    framed = {**followed, "Sec_Fetch_Dest": "iframe"}
    assert (await v1.ask(server, "GET", "/ui", **framed)).status == 403
    assert (await v1.ask(server, "GET", "/ui", **followed, Origin="https://evil.example")).status == 403
    assert (await v1.ask(server, "GET", "/ui", Sec_Fetch_Site="cross-site")).status == 403


async def test_it_is_shown_to_who_has_no_token_yet(clock: FakeClock, tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens.json", clock)
    tokens.write()
    async with serving(Settings(), clock=clock, access=tokens.access()) as server:
        assert (await v1.ask(server, "GET", "/ui")).status == 200
        assert (await v1.ask(server, "GET", "/v1/overview")).status == 401


def test_every_module_that_is_imported_is_there() -> None:
    for path in FILES.glob("*.js"):
        for name in re.findall(r'from "\./([^"]+)"', path.read_text()):
            assert (FILES / name).exists(), f"{path.name} imports {name}"


def test_the_page_has_no_way_to_make_markup_of_texts() -> None:
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|style=|javascript:"
    for path in FILES.iterdir():
        assert not re.search(ways, path.read_text()), path.name
        assert set(re.findall(r"https?://[^\s\"']+", path.read_text())) <= {"http://www.w3.org/2000/svg"}, path.name


def test_a_policy_is_set_with_the_fields_and_defaults_that_it_has() -> None:
    def value(policy: QueuePolicy, name: str) -> object:
        return reduce(getattr, name.split("."), policy)

    text = (FILES / "policy.js").read_text()
    told = {
        name: tuple(msgspec.json.decode(each) for each in (initial, default or initial))
        for name, initial, default in re.findall(
            r'\{ name: "([\w.]+)", .*initial: ("\w+"|\w+)(?:, default_: (\w+))?.* \},', text
        )
    }
    fields = [name for name in PolicyBody.__struct_fields__ if name not in {"retry", "paused"}]
    assert set(told) == {*fields, *(f"retry.{name}" for name in RetryBody.__struct_fields__)}
    for name, defaults in told.items():
        assert defaults == (value(FIRST_POLICY, name), value(DEFAULT_QUEUE_POLICY, name)), name
    no_value = {name for name in fields if type(None) in get_args(get_type_hints(PolicyBody)[name])}
    assert set(re.findall(r'name: "([\w.]+)", .*unit: "\w+", none: "', text)) == no_value
