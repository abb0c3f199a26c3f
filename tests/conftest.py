"""What the test files share."""

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("world")

# The machines that run these are slow and noisy at times: how long an example takes says nothing.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
