"""The HTTP face of the queue; web/README.md is its contract."""
