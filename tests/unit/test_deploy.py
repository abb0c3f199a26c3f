"""The files of scripts/deploy say what the program does: settings, paths and fields that there are."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from queue_actor.commands import QueueView
from queue_actor.engine import Engine
from queue_actor.jobs import JobState, QueuePolicy
from queue_actor.settings import SETTINGS, Settings
from web.app import App
from web.views import queue_document

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "scripts/deploy"
VARIABLES = {setting.variable for setting in SETTINGS}
FLAGS = {setting.flag for setting in SETTINGS}


def documents(name: str) -> dict[str, Any]:
    """The documents of a file, by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / name).read_text())}


@pytest.fixture
def pod() -> dict[str, Any]:
    spec: dict[str, Any] = documents("kubernetes.yaml")["StatefulSet"]["spec"]["template"]["spec"]
    return spec


async def test_the_probes_ask_paths_that_answer_without_a_token(pod: dict[str, Any], engine: Engine) -> None:
    paths = {str(rule) for rule in App(engine, Settings()).url_map.iter_rules()}
    (container,) = pod["containers"]
    asked = {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("liveness", "readiness")}
    assert asked == {"/healthz", "/readyz"}
    assert asked <= paths


def test_there_is_one_replica_that_keeps_its_jobs_on_a_volume(pod: dict[str, Any]) -> None:
    spec = documents("kubernetes.yaml")["StatefulSet"]["spec"]
    assert spec["replicas"] == 1
    (container,) = pod["containers"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    (claim,) = spec["volumeClaimTemplates"]
    assert Path(mounts[claim["metadata"]["name"]]) in Path(environment["QUEUE_ACTOR_DATA"]).parents
    assert Path(mounts["tokens"]) == Path(environment["QUEUE_ACTOR_TOKENS"]).parent
    assert not any("subPath" in mount for mount in container["volumeMounts"])  # which would hide a changed secret


def test_kubernetes_puts_no_variables_of_its_own_into_the_environment(pod: dict[str, Any]) -> None:
    assert pod["enableServiceLinks"] is False
    (container,) = pod["containers"]
    assert {variable["name"] for variable in container["env"]} <= VARIABLES


def test_the_service_finds_the_pod(pod: dict[str, Any]) -> None:
    service = documents("kubernetes.yaml")["Service"]["spec"]
    labels = documents("kubernetes.yaml")["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    (container,) = pod["containers"]
    assert [port["targetPort"] for port in service["ports"]] == [port["name"] for port in container["ports"]]


def test_the_scaler_reads_numbers_that_a_queue_has() -> None:
    view = QueueView("images", exists=True, counts=dict.fromkeys(JobState, 7), policy=QueuePolicy())
    document = msgspec.json.decode(msgspec.json.encode(queue_document(view, 0)))
    service = documents("kubernetes.yaml")["Service"]
    triggers = documents("keda.yaml")["ScaledObject"]["spec"]["triggers"]
    assert len(triggers) == 2
    for trigger in triggers:
        facts = trigger["metadata"]
        value = document
        for name in facts["valueLocation"].split("."):
            value = value[name]
        assert value == 7
        host = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
        assert facts["url"] == f"{host}/v1/queues/images"


def test_the_container_runs_the_program_and_copies_what_it_needs() -> None:
    lines = (DEPLOY / "Containerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.*)$", lines, re.MULTILINE) for name in line.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    assert {"queue_actor", "web", "requirements.lock", "scripts/setup.sh"} <= set(copied)
    assert set(re.findall(r"\bQUEUE_ACTOR_\w+", lines)) <= VARIABLES
    assert 'ENTRYPOINT ["/opt/queue-actor/.venv/bin/python", "-m", "web"]' in lines


def test_the_unit_starts_the_program_with_flags_that_there_are() -> None:
    unit = (DEPLOY / "queue-actor.service").read_text()
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    assert set(re.findall(r"--[\w-]+", command)) <= FLAGS
    assert "RestartPreventExitStatus=78" in unit


# The units are for machines that have it; the tests above look at the same files without it.
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    socket, service = ((DEPLOY / name).read_text() for name in ("queue-actor.socket", "queue-actor.service"))
    # It looks for the program, the user and the directory, which are on the operator's machine.
    service = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", service, flags=re.MULTILINE)
    service = re.sub(r"^(User|WorkingDirectory)=.*$", "", service, flags=re.MULTILINE)
    (tmp_path / "queue-actor.socket").write_text(socket)
    (tmp_path / "queue-actor.service").write_text(service)
    command = ["systemd-analyze", "verify", str(tmp_path / "queue-actor.service"), str(tmp_path / "queue-actor.socket")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")
