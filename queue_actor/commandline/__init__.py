"""The command line: one module for each group of commands, and what they share.

`group.py` has the way in and the exit codes, `session.py` what is known of the server and how it is found,
`terminal.py` how anything reaches a terminal. This is a side branch: it talks to a server by `queue_actor.client`, and
imports neither the queue nor `web`.
"""
