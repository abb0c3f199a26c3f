"""README.md tells of every line of the log. That requests have no other fields is checked by tests/contract."""

from tests.log_events import told, written


def test_the_readme_tells_of_every_event_with_its_level_and_of_no_other() -> None:
    assert {(call.event, call.level) for call in written()} == {(name, event.level) for name, event in told().items()}


def test_the_readme_tells_of_every_field_that_is_written_down_with_its_event() -> None:
    plain = [call for call in written() if call.fields is not None]
    assert len(plain) > 10
    for call in plain:
        assert call.fields is not None
        assert call.fields <= told()[call.event].fields, call.where
