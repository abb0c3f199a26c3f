"""Other engines behind the same interface, `queue_actor.engine.Engine`."""
