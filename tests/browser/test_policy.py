"""Setting a queue's policy on the dashboard, and declaring a queue."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import Looker, looking, need_browser
from tests.browser.jobs import Q, enqueue
from tests.process.server import Server, running_server
from tests.process.tokens import bearer, token

need_browser()

pytestmark = [pytest.mark.process, pytest.mark.slow]

SLOWLY = {"kind": "fixed", "base_seconds": 30.0, "factor": 2.0, "cap_seconds": 3600.0, "jitter": "none"}


def policy(server: Server, path: str = Q) -> dict[str, Any]:
    shown: dict[str, Any] = server.request("GET", path).body["policy"]
    return shown


def edit(looker: Looker) -> Any:
    """The editor of the policy, opened on the page of the queue."""
    looker.open("#/queues/images", "images")
    looker.button("Edit…").click()
    return looker.page.get_by_role("dialog", name="Policy of images")


def told_at(looker: Looker, label: str) -> str:
    """What is said of a field to those who listen."""
    ids = str(looker.page.get_by_label(label, exact=True).get_attribute("aria-describedby")).split()
    return " | ".join(looker.page.locator(f'[id="{each}"]').inner_text() for each in ids)


def test_a_policy_is_set_and_what_was_not_touched_stays(server: Server, looker: Looker) -> None:
    server.request("PUT", Q, {"retry": SLOWLY, "in_progress_max": 7, "paused": True})
    before = policy(server)
    dialog = edit(looker)
    dialog.get_by_text("Nothing is changed.").wait_for()
    dialog.get_by_label("Longest run").fill("90")
    dialog.get_by_label("Attempts at most").fill("")
    dialog.get_by_label("Pauses between attempts").select_option("exponential")
    dialog.get_by_text(
        "Changes: Attempts at most: 25 → no limit; Pauses between attempts: are alike → grow; "
        "Longest run: no limit → 1 min 30 s."
    ).wait_for()
    looker.button("Save it").click()
    looker.shows("The policy of images is saved.")
    dialog.wait_for(state="detached")
    looker.shows("1 min 30 s")  # on the page, too
    retry = SLOWLY | {"kind": "exponential"}
    assert policy(server) == before | {"max_attempts": None, "run_seconds_max": 90.0, "retry": retry}
    assert server.request("GET", Q).body["paused"]


def test_an_empty_field_means_what_stands_below_it(server: Server, looker: Looker) -> None:
    filled = {"max_stale": 2, "lease_seconds": 60, "oldest_every": 4, "retention_seconds": 5, "queued_jobs_max": 9}
    server.request("PUT", Q, filled | {"retry": SLOWLY})
    dialog = edit(looker)
    for label in (
        "Of these gone stale",
        "Length of a lease",
        "Takes the oldest",
        "Keeps ended jobs",
        "The first pause",
    ):
        dialog.get_by_label(label, exact=True).fill(" ")
    looker.button("Save it").click()
    dialog.wait_for(state="detached")
    after = policy(server)
    assert [after[name] for name in filled] == [None, None, 0, None, 9]
    assert after["retry"] == SLOWLY | {"base_seconds": 1.0}


def test_each_field_tells_its_unit_and_its_default(server: Server, looker: Looker) -> None:
    enqueue(server)
    dialog = edit(looker)
    hints = dialog.locator(".hint").all_inner_texts()
    assert len(hints) == len(dialog.get_by_role("textbox").all()) + len(dialog.get_by_role("combobox").all()) == 15
    assert all("default: " in hint for hint in hints)
    assert told_at(looker, "Attempts at most").startswith("in attempts; default: 25; empty: no limit")
    assert told_at(looker, "Time to live").startswith("of a new job; in seconds; default: empty, no limit")
    enqueue(server, queue="default")
    looker.open("#/queues/default", "default")
    looker.button("Edit…").click()
    looker.page.get_by_role("dialog").wait_for()
    assert told_at(looker, "Attempts at most").startswith("in attempts; default: empty, no limit")


@pytest.mark.parametrize(
    ("label", "typed", "told"),
    [
        ("Attempts at most", "0", "Expected `int` >= 1"),
        ("In progress at most", "2.5", "This is no whole number."),
        ("The first pause", "0", "Expected `float` >= 0.001"),
        ("Grows by the factor", "1000", "Expected `float` <= 100.0"),
        ("Length of a lease", "99999", "a lease is at most lease_seconds_max, 43200"),
        ("Longest run", "ten", "This is no number."),
        ("Time to live", "1e999", "This is no number."),
        ("Keeps dead jobs", "-1", "Expected `float` >= 0.0"),
    ],
)
def test_a_bad_value_is_told_at_its_field_and_nothing_is_lost(
    server: Server, looker: Looker, label: str, typed: str, told: str
) -> None:
    enqueue(server)
    before = policy(server)
    dialog = edit(looker)
    dialog.get_by_label("Waiting jobs at most").fill("1000")
    field = dialog.get_by_label(label, exact=True)
    field.fill(typed)
    looker.button("Save it").click()
    dialog.get_by_text(told, exact=True).wait_for()
    assert told_at(looker, label).endswith(f" | {told}")
    assert field.get_attribute("aria-invalid") == "true"
    assert field.evaluate("field => field === document.activeElement")
    assert (field.input_value(), dialog.get_by_label("Waiting jobs at most").input_value()) == (typed, "1000")
    assert looker.accessibility() == []
    assert policy(server) == before
    field.fill("3")
    looker.page.keyboard.press("Enter")
    dialog.wait_for(state="detached")
    assert policy(server)["queued_jobs_max"] == 1000


def test_what_somebody_else_has_saved_meanwhile_is_not_replaced_unseen(server: Server, looker: Looker) -> None:
    enqueue(server)
    dialog = edit(looker)
    dialog.get_by_label("Attempts at most").fill("3")
    server.request("PUT", Q, {"in_progress_max": 1})
    looker.button("Save it").click()
    dialog.get_by_text("Somebody else has changed the policy meanwhile.").wait_for()
    dialog.get_by_text("In progress at most: 1 → no limit").wait_for()
    assert policy(server)["in_progress_max"] == 1
    looker.button("Save it").click()
    dialog.wait_for(state="detached")
    assert (policy(server)["max_attempts"], policy(server)["in_progress_max"]) == (3, None)


def test_what_was_typed_outlives_the_server(browser: Any, tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    with running_server(*data) as server:
        port = server.port
        enqueue(server)
        with looking(browser, f"http://127.0.0.1:{port}") as looker:
            dialog = edit(looker)
            dialog.get_by_label("Longest run").fill("90")
            server.terminate()
            server.wait(seconds=30)
            looker.button("Save it").click()
            dialog.get_by_text("Not saved: the server cannot be reached.").wait_for()
            with running_server("--bind", f"127.0.0.1:{port}", *data) as again:
                looker.button("Save it").click()
                dialog.wait_for(state="detached")
                assert policy(again)["run_seconds_max"] == 90


def test_who_leaves_without_saving_is_asked_once(server: Server, looker: Looker) -> None:
    enqueue(server)
    before = policy(server)
    dialog = edit(looker)
    looker.page.keyboard.press("Escape")  # there is nothing to lose yet
    dialog.wait_for(state="detached")
    looker.button("Edit…").click()
    dialog.get_by_label("Longest run").fill("90")
    looker.page.keyboard.press("Escape")
    dialog.get_by_text("This is not saved yet.").wait_for()
    assert dialog.get_by_label("Longest run").input_value() == "90"
    looker.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert policy(server) == before


def test_a_queue_is_declared(server: Server, looker: Looker) -> None:
    enqueue(server)
    looker.open("#/", "Queues")
    looker.button("New queue…").click()
    dialog = looker.page.get_by_role("dialog", name="Declare a queue")
    dialog.get_by_label("In progress at most").fill("1")
    name = dialog.get_by_label("Name", exact=True)
    for typed, told in (
        ("", "A queue has a name."),
        ("..", "A queue has a name."),
        ("images", "There is such a queue"),
    ):
        name.fill(typed)
        looker.button("Declare it").click()
        dialog.get_by_text(told).wait_for()
        assert name.evaluate("field => field === document.activeElement")
    assert looker.accessibility() == []
    name.fill("a name")
    looker.button("Declare it").click()
    dialog.locator("[id=wrong-name]", has_text="a queue's name").wait_for()
    name.fill("reports")
    looker.button("Declare it").click()
    looker.sees("reports")
    looker.shows("set by an operator")
    shown = server.request("GET", "/v1/queues/reports").body
    assert (shown["declared"], shown["policy"]["in_progress_max"], shown["policy"]["max_attempts"]) == (True, 1, 25)
    assert policy(server)["in_progress_max"] is None


def test_a_queue_that_does_not_exist_is_declared_on_its_page(server: Server, looker: Looker) -> None:
    looker.open("#/queues/later", "later")
    looker.button("Declare it…").click()
    looker.page.get_by_role("dialog", name="Declare later").get_by_role("button", name="Declare it").click()
    looker.shows("later is declared.")
    looker.button("Edit…").wait_for()
    assert server.request("GET", "/v1/queues/later").body["declared"]


@pytest.mark.parametrize(("size", "scheme"), [("desk", "dark"), ("phone", "light"), ("phone", "dark")])
def test_the_editor_can_be_used_by_everybody(browser: Any, server: Server, size: str, scheme: str) -> None:
    enqueue(server)
    with looking(browser, f"http://127.0.0.1:{server.port}", size=size, scheme=scheme) as looker:
        dialog = edit(looker)
        dialog.get_by_label("Attempts at most").fill("x")
        looker.page.keyboard.press("Enter")
        dialog.get_by_text("This is no number.").wait_for()
        assert looker.accessibility() == []
        assert dialog.evaluate("dialog => dialog.scrollWidth - dialog.clientWidth") <= 0
        dialog.get_by_label("Attempts at most").fill("9")
        for _ in range(16):  # through all the fields to the buttons
            looker.page.keyboard.press("Tab")
        assert looker.page.evaluate("document.activeElement.textContent") == "Save it"
        looker.page.keyboard.press("Enter")
        dialog.wait_for(state="detached")
        assert policy(server)["max_attempts"] == 9


def test_it_is_offered_to_those_who_may(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    operator = token(path, "create", "operator", "--scope", "operate", "--scope", "read", "--queue", "*")
    theirs = token(path, "create", "theirs", "--scope", "admin", "--queue", "images")
    with running_server("--tokens", str(path)) as server:
        for name in ("images", "other"):
            server.request("PUT", f"/v1/queues/{name}", {}, bearer(theirs))
        for shown, offered in (
            (operator, {"#/": [], "#/queues/images": [], "#/queues/other": []}),
            (
                theirs,
                {
                    "#/": ["New queue…"],
                    "#/queues/images": ["Edit…"],
                },
            ),
        ):
            with looking(browser, f"http://127.0.0.1:{server.port}") as looker:
                looker.open("#/")
                looker.page.get_by_role("dialog").get_by_label("Token").fill(shown)
                looker.button("Sign in").click()
                for link, buttons in offered.items():
                    looker.page.evaluate("link => { location.hash = link; }", link)
                    looker.sees(link.rpartition("/")[2] or "Queues")
                    wanted = re.compile("New queue…|Edit…|Declare it…")
                    assert looker.page.get_by_role("button", name=wanted).all_inner_texts() == buttons, link
        with looking(browser, f"http://127.0.0.1:{server.port}") as looker:  # whose queue it is not is told so
            looker.open("#/")
            looker.page.get_by_role("dialog").get_by_label("Token").fill(theirs)
            looker.button("Sign in").click()
            looker.button("New queue…").click()
            looker.page.get_by_label("Name", exact=True).fill("other")
            looker.button("Declare it").click()
            looker.shows("Not saved: ")
            looker.shows("queue other")
