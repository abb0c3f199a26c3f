"""The corpus of hostile input on streams in memory, where what a real server cannot tell is counted: its tasks."""

from contextlib import suppress

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from queue_actor.settings import Settings
from tests.contract.stack import serving
from tests.process.hostile import INPUTS

pytestmark = pytest.mark.virtual_time


@pytest.mark.parametrize("leave", ["at once", "after the answers"])
async def test_nothing_in_the_corpus_leaves_a_task_a_connection_or_a_waiter_behind(leave: str) -> None:
    async with serving(Settings()) as server:
        await server.ask("GET", "/healthz")
        await wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living
        for name, (sent, statuses, _) in INPUTS.items():
            client = server.connect()
            with suppress(trio.BrokenResourceError):  # if it was refused before it had sent everything
                await client.send(sent)
            if leave == "after the answers":
                for status in statuses:
                    answer = await client.read(sent.partition(b" ")[0].decode("latin1"))
                    assert answer.status == status, name
            else:
                await wait_all_tasks_blocked()
                server.answers = len(server.request_lines)
            await client.leave()
            await wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().tasks_living == tasks, name
            assert len(server.connections) == 0, name
        assert server.engine.statistics().waiters == 0
        assert [line for line in server.log if line["level"] != "info"] == []
        server.answers = len(server.request_lines)
