"""A peer that speaks Modal's gRPC protocol to Modal's own SDK and really runs, in Docker, what is deployed to it.

It is a process of its own (`python -m tests.modal_service`), so that commands in subprocesses talk to it, and it
imports nothing of the product. Only direct Servers are known: an image from a registry, run as it is.

What the service's documents leave open is decided for the harder case:

- a running container keeps its environment when a secret changes; PORT is set by nobody but the deployer
- tags of the app stay as they were when a deployment is rolled back, and that new deployment has no tag
- a request to a server with sessions needs the session's token beside the proxy credentials: 400 without, 404 when
  the session is over or its container is gone
- a new stream of logs begins with new lines
- a server scaled to zero answers 503, one that takes no more 429, one of a stopped app 404
- a container that ends is given its grace period for requests in flight and live sessions, then SIGTERM and 5 s
- no deployment is ever found to change nothing
"""
