"""A service whose numeric kernel is published: replaced while it runs, also under --preload, without HUP.

    gunicorn -c gunicorn.conf.py app:app
"""

import json
import os
import threading
from ctypes import c_double

import jitcast

SOCKET = os.environ.get("JITCAST_SOCKET", "/tmp/jitcast-gunicorn.sock")
SAMPLES = (c_double * 1000)(*range(1000))

# Imported before the fork, under --preload. Whatever attaches, does so afterwards.
worker = kernel = None


def attach():
    """Called in each worker process, by gunicorn.conf.py."""
    global worker, kernel
    worker = jitcast.Worker(SOCKET, label="gunicorn")
    # C without -g says nothing of its types. Served by Python until there is a kernel.
    kernel = worker.function("kernel", "(ptr, i64) -> f64", fallback=lambda samples, n: 0.0, vouch=True)


def detach():
    global worker, kernel
    if worker is not None:
        kernel = None
        worker.detach()
        worker = None


def app(environ, start_response):
    # The request's guard: everything that it calls is of one generation. Nothing is yielded to the server inside.
    with worker:
        first, second = kernel(SAMPLES, len(SAMPLES)), kernel(SAMPLES, len(SAMPLES))
        answer = {"result": first, "same": first == second, "generation": worker.generation}
    answer.update(process=os.getpid(), thread=threading.get_ident())
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
