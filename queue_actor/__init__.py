"""A job queue owned by one task; queue_actor/README.md is its theory of operation."""
