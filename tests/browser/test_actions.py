"""What the dashboard lets an operator do, and what it says before."""

import pytest

from tests.browser.conftest import Looker, need_browser
from tests.browser.jobs import Q, dequeue, end, enqueue, furnish, state
from tests.process.server import Server

need_browser()

pytestmark = [pytest.mark.process, pytest.mark.slow]


def test_a_queue_is_paused_and_resumed(server: Server, looker: Looker) -> None:
    enqueue(server)
    looker.open("#/queues/images", "images")
    looker.button("Pause").click()
    looker.confirm("1 job would wait", "Pause it")
    looker.shows("images is paused.")
    assert server.request("GET", Q).body["paused"]
    looker.button("Resume").click()
    looker.confirm("1 job can be handed out", "Resume it")
    looker.button("Pause").wait_for()
    assert not server.request("GET", Q).body["paused"]


@pytest.mark.parametrize(
    ("button", "verb", "told"),
    [
        ("Cancel…", "Cancel them", "2 jobs cancelled."),
        ("Redrive…", "Redrive them", "1 job redriven."),
        ("Purge…", "Forget them for good", "2 jobs forgotten."),
    ],
)
def test_all_jobs_that_match_are_counted_and_then_done(
    server: Server, looker: Looker, button: str, verb: str, told: str
) -> None:
    furnish(server)
    looker.open("#/queues/images", "images")
    looker.button(button).click()
    looker.confirm(f"This touches {told.rpartition(' ')[0]}.", verb)
    looker.shows(told)


def test_the_filter_of_a_search_is_that_of_its_bulk_verbs(server: Server, looker: Looker) -> None:
    furnish(server)
    enqueue(server, {"type": "other"})
    looker.open("#/queues/images/jobs", "Jobs of images")
    looker.page.get_by_label("Type").fill("other")
    looker.button("Search").click()
    looker.page.get_by_role("row").nth(1).wait_for()
    assert "type=other" in looker.page.url  # a link to keep
    looker.page.get_by_role("group", name="All that match").get_by_role("button", name="Cancel…").click()
    looker.confirm("This touches 1 job.", "Cancel them")
    looker.shows("1 job cancelled.")
    assert (state(server, 4), state(server, 7)) == ("queued", "cancelled")


def test_jobs_are_found_by_their_error_and_redriven(server: Server, looker: Looker) -> None:
    furnish(server)
    enqueue(server, {"type": "late"})
    _, late = dequeue(server, 2)
    end(server, late, "fail", retry=False, error={"type": "Late", "message": "too late"})
    looker.open("#/queues/images/jobs", "Jobs of images")
    looker.page.get_by_label("Error contains").fill("no answer")
    looker.button("Search").click()
    looker.page.get_by_label("Select job 7").wait_for(state="detached")
    looker.page.get_by_label("Select job 2").wait_for()
    looker.page.get_by_role("group", name="All that match").get_by_role("button", name="Redrive…").click()
    looker.page.get_by_text("Only jobs with error no answer").wait_for()
    looker.confirm("This touches 1 job.", "Redrive them")
    looker.shows("1 job redriven.")
    assert (state(server, 2), state(server, 7)) == ("queued", "dead")


def test_jobs_are_selected_and_redriven(server: Server, looker: Looker) -> None:
    furnish(server)
    looker.open("#/queues/images/jobs?state=dead,cancelled", "Jobs of images")
    looker.page.get_by_label("Select job 2").check()
    looker.page.get_by_role("group", name="Selected jobs").get_by_role("button", name="Redrive…").click()
    looker.confirm("This touches 1 job: 2.", "Redrive them")
    looker.shows("1 job redriven.")
    assert (state(server, 2), state(server, 6)) == ("queued", "cancelled")


def test_finished_jobs_are_selected_and_forgotten(server: Server, looker: Looker) -> None:
    furnish(server)
    looker.open("#/queues/images/jobs", "Jobs of images")
    selected = looker.page.get_by_role("group", name="Selected jobs")
    forget = selected.get_by_role("button", name="Forget…")
    assert forget.is_disabled()
    for id_ in (1, 2, 4):
        looker.page.get_by_label(f"Select job {id_}").check()
    selected.get_by_text("Selected: 3").wait_for()
    assert forget.is_disabled()  # 4 waits
    looker.page.get_by_label("Select job 4").uncheck()
    forget.click()
    assert looker.accessibility() == []
    looker.confirm("This touches 2 jobs: 2, 1.", "Forget them for good")
    looker.shows("2 jobs forgotten.")
    selected.get_by_text("Selected: 0").wait_for()
    assert [server.request("GET", f"{Q}/jobs/{id_}").body.get("code") for id_ in range(1, 7)] == [
        *("forgotten", "forgotten"),
        *[None] * 4,
    ]
    looker.page.get_by_label("Select job 1").wait_for(state="detached")
    looker.page.get_by_label("Select job 6").wait_for()


def test_jobs_that_cannot_be_forgotten_any_more_are_told(server: Server, looker: Looker) -> None:
    furnish(server)
    looker.open("#/queues/images/jobs?state=dead,cancelled", "Jobs of images")
    looker.page.get_by_label("Select all jobs of this page").check()
    looker.page.get_by_role("group", name="Selected jobs").get_by_role("button", name="Forget…").click()
    looker.page.get_by_role("dialog").get_by_text("This touches 2 jobs: 6, 2.").wait_for()
    server.request("POST", f"{Q}/jobs/2/redrive")
    looker.confirm("This touches 2 jobs: 6, 2.", "Forget them for good")
    looker.shows("1 job forgotten; 1 not: ")
    assert (state(server, 2), server.request("GET", f"{Q}/jobs/6").body["code"]) == ("queued", "forgotten")


def test_jobs_are_selected_and_cancelled(server: Server, looker: Looker) -> None:
    furnish(server)
    looker.open("#/queues/images/jobs?state=queued,scheduled,in_progress", "Jobs of images")
    looker.page.get_by_label("Select job 5").check()
    looker.page.get_by_label("Select job 3").check()
    looker.page.get_by_role("group", name="Selected jobs").get_by_role("button", name="Cancel…").click()
    looker.confirm("This touches 2 jobs: 5, 3.", "Cancel them")
    looker.shows("2 jobs cancelled.")
    looker.shows("cancel asked")
    assert (state(server, 5), state(server, 3), state(server, 4)) == ("cancelled", "in_progress", "queued")


@pytest.mark.parametrize(
    ("id_", "buttons", "after"),
    [
        (4, ("Cancel", "Cancel it"), "cancelled"),
        (2, ("Redrive", "Redrive it"), "queued"),
        (5, ("Run now", "Make it ready"), "queued"),
    ],
)
def test_a_job_is_acted_upon(server: Server, looker: Looker, id_: int, buttons: tuple[str, str], after: str) -> None:
    button, verb = buttons
    furnish(server)
    looker.open(f"#/queues/images/jobs/{id_}", f"Job {id_}")
    looker.button(button).click()
    looker.page.get_by_role("dialog").get_by_role("button", name=verb).click()
    looker.page.locator(f"p.why.{after}").wait_for()
    assert state(server, id_) == after


def test_a_job_is_forgotten(server: Server, looker: Looker) -> None:
    furnish(server)
    looker.open("#/queues/images/jobs/1", "Job 1")
    looker.button("Forget").click()
    looker.page.get_by_role("dialog").get_by_role("button", name="Forget it for good").click()
    looker.sees("There is no such thing")
    assert server.request("GET", f"{Q}/jobs/1").body["code"] == "forgotten"


def test_what_is_refused_is_told(server: Server, looker: Looker) -> None:
    furnish(server)
    looker.open("#/queues/images/jobs/4", "Job 4")
    looker.button("Cancel").click()
    server.request("POST", f"{Q}/jobs/4/cancel")
    server.request("DELETE", f"{Q}/jobs/4")
    looker.page.get_by_role("dialog").get_by_role("button", name="Cancel it").click()
    looker.shows("Not done: job 4 of queue images has ended")


def test_it_can_be_used_by_keyboard(server: Server, looker: Looker) -> None:
    furnish(server)
    looker.open("#/", "Queues")
    looker.page.keyboard.press("/")
    looker.page.keyboard.type("images/2")
    looker.page.keyboard.press("Enter")
    looker.sees("Job 2")
    assert looker.page.evaluate("document.activeElement.tagName") == "H1"
    assert looker.page.title() == "Job 2 of images · queue-actor"
    looker.page.keyboard.press("Tab")
    looker.page.keyboard.press("Tab")
    assert looker.page.evaluate("document.activeElement.textContent") == "Forget"
