# A guard belongs to a thread: `sync` and `gthread` workers, not ones of greenlets.

workers = 4
preload_app = True


def post_fork(server, worker):
    import app

    app.attach()


def worker_exit(server, worker):
    import app

    app.detach()
