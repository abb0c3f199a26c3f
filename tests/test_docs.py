"""The documents tell the truth: what they list is what the code has, no more and no less."""

import re
from pathlib import Path

import pytest
import trio

from queue_actor.service import open_engine
from queue_actor.settings import SETTINGS, Setting, Settings, help_text
from web.app import App
from web.problems import PROBLEMS
from web.schemas import CONSUMER_HEADERS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("[!.]*/**/*.md")), *sorted(ROOT.glob("*.md"))]
README = (ROOT / "README.md").read_text()
CONTRACT = (ROOT / "web/README.md").read_text()


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
                r"_(seconds|bytes|jobs|requests|queues|connections|waiters)_max$|^(queues|waiters|connections)_max$",
                setting.name,
            )


def test_the_contract_lists_every_code_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| ([^|]*) \|", CONTRACT, re.MULTILINE)
    listed = {(code, int(status)) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    served = {(code, kind.status) for code, kind in PROBLEMS.items()}

    assert listed == served


def test_the_contract_explains_every_advice() -> None:
    explained = set(re.findall(r"^\| `(\w+)` \| (?:nothing|it was|the request|the job)", CONTRACT, re.MULTILINE))

    assert explained == {kind.retryable for kind in PROBLEMS.values()}


async def test_the_contract_describes_every_route_with_its_methods() -> None:
    async with open_engine(Settings()) as engine:
        rules = list(App(engine, Settings()).url_map.iter_rules())
        await trio.lowlevel.checkpoint()
    served = {
        (re.sub(r"<(?:\w+:)?(\w+?)_?>", r"{\1}", rule.rule), method)
        for rule in rules
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    described = set()
    for heading, section in re.findall(r"^## (`[A-Z].*?)\n(.*?)(?=^## |\Z)", CONTRACT, re.MULTILINE | re.DOTALL):
        named = re.findall(r"`([A-Z]+) (/\S*?)`", heading)
        described |= {(path, method) for method, path in named}
        also = re.match(r"\s*Also ((?:`[A-Z]+`(?: and |, |;|\.)?)+)", section)
        if also:
            described |= {(named[0][1], method) for method in re.findall(r"`([A-Z]+)`", also[1])}

    assert described == served


def test_the_contract_names_every_header_of_the_consumer() -> None:
    for header in CONSUMER_HEADERS:
        assert f"`{header}`" in CONTRACT


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_the_scripts_are_all_described() -> None:
    described = set(re.findall(r"^\| `(\w+\.sh)", (ROOT / "scripts/README.md").read_text(), re.MULTILINE))

    assert described == {path.name for path in (ROOT / "scripts").glob("*.sh")}
