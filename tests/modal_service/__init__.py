"""A peer that speaks Modal's gRPC protocol to Modal's own SDK and really runs, in Docker, what is deployed to it.

It is a process of its own (`python -m tests.modal_service`), so that commands in subprocesses talk to it, and it
imports nothing of the product. What of the service's behaviour is not written down anywhere is decided here for the
harder case, with a comment that says so.
"""
