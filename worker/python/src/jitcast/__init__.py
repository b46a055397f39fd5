"""Calls functions that a compiler process publishes, and that are replaced while this process runs.

    worker = jitcast.Worker("/run/jitcast.sock")
    score = worker.function("score", "(i64) -> i64")
    with worker:
        print(score(21))
"""

import ctypes

from ._library import Import, Options, Statistics, library
from ._signature import prototype

__all__ = ["Error", "Function", "Worker"]

OK = 0
TIMED_OUT = 2
UNKNOWN_SIGNATURE = 33
FOREVER = 2**64 - 1


class Error(Exception):
    """What the library refuses: `status` is its number (jitcast_status in jitcast.h), the text says what to do."""

    def __init__(self, status):
        super().__init__(library().jitcast_last_error().decode("utf-8", "replace"))
        self.status = status


def _check(status):
    if status != OK:
        raise Error(status)


class Worker:
    """This process's attachment to a segment; also the guard of the thread that enters it with `with`.

    `socket` is where the compiler process listens: a path, or a name in the abstract name space after an `@`. Instead of it, `fd` is a
    connected socket, which is the library's from then on, or `name` that of a named segment. `label` is what `jitcast status` shows,
    and what canaries may be for. `imports` are functions that published code may call, by name: pairs of a signature and a callable,
    or addresses. With `strict` it may call nothing else.

    After os.fork() the child is a worker too. Servers that fork without calling os.fork() are no different.
    """

    def __init__(self, socket=None, *, fd=None, name=None, label=None, imports=None, strict=False):
        if [socket, fd, name].count(None) != 2:
            raise TypeError("say one of socket, fd and name")
        self._worker = ctypes.c_void_p()
        # What published code may call lives as long as this.
        self._imports = _imports(imports or {})
        options = Options(size=ctypes.sizeof(Options), flags=int(strict))
        options.label = None if label is None else label.encode()
        options.imports = self._imports[0]
        options.import_count = len(self._imports[0])
        attached = ctypes.byref(options), ctypes.byref(self._worker)
        if socket is not None:
            _check(library().jitcast_attach_path(_path(socket), *attached))
        elif name is not None:
            _check(library().jitcast_attach_name(name.encode(), *attached))
        else:
            _check(library().jitcast_attach_fd(fd, *attached))

    def __enter__(self):
        """Enters a guard: applies what is new, unless this thread is inside already."""
        _check(library().jitcast_enter(self._worker, None))
        return self

    def __exit__(self, *_):
        _check(library().jitcast_leave(self._worker))

    def function(self, name, signature, *, fallback=None, vouch=False):
        """The function `name`, of a signature like `(i64, f64) -> f64`, which is compared with what was recorded when it was published.

        `fallback`, a callable, is called instead while it is not published, quarantined, or cannot be called here. If nothing was recorded
        (C without -g), the call is refused, unless `vouch` says that the signature is right, for every version to come.
        """
        return Function(self, name, signature, fallback, vouch)

    @property
    def generation(self):
        """That of this thread's guard, or else the one that was applied last."""
        return library().jitcast_generation(self._worker)

    @property
    def is_connected(self):
        """Whether the compiler process was there when somebody last looked."""
        return library().jitcast_is_connected(self._worker)

    @property
    def stats(self):
        """A dict of what the worker can say about itself."""
        stats = Statistics(size=ctypes.sizeof(Statistics))
        _check(library().jitcast_stats(self._worker, ctypes.byref(stats)))
        return {name: getattr(stats, name) for name, _ in Statistics._fields_ if name != "size"}

    def fileno(self):
        """What an event loop watches: when it is readable or has hung up, `tend` is to be called."""
        return library().jitcast_fd(self._worker)

    def tend(self):
        """Looks whether the compiler process is there, and if not, for its successor. Never waits."""
        _check(library().jitcast_tend(self._worker))

    def wait(self, seen, timeout=None):
        """Waits until something newer than generation `seen` is published, at most `timeout` seconds: whether there is."""
        nanoseconds = FOREVER if timeout is None else int(timeout * 1e9)
        status = library().jitcast_wait(self._worker, seen, nanoseconds)
        if status != TIMED_OUT:
            _check(status)
        return status != TIMED_OUT

    def detach(self):
        """Detaches, while no thread is inside. Functions are of no use any more."""
        worker, self._worker = self._worker, ctypes.c_void_p()
        try:
            _check(library().jitcast_detach(worker))
        except Error:
            self._worker = worker
            raise


class Function:
    """A published function, to be called inside a guard of its worker. Follows updates."""

    def __init__(self, worker, name, signature, fallback, vouch):
        self.name = name
        self._prototype = prototype(signature)
        # The library calls it for as long as there is a handle.
        self._fallback = self._prototype(fallback) if fallback else None
        self._worker = worker
        self._handle = ctypes.c_void_p()
        fallback = ctypes.cast(self._fallback, ctypes.c_void_p) if fallback else None
        args = [worker._worker, name.encode(), signature.encode(), fallback, ctypes.byref(self._handle)]
        status = library().jitcast_function(*args)
        if status == UNKNOWN_SIGNATURE and vouch:
            args[2] = None
            status = library().jitcast_function(*args)
        _check(status)
        # jitcast_handle begins with what is to be called. A load on x86-64 is the acquire load that jitcast_address is.
        self._target = ctypes.c_uint64.from_address(self._handle.value)
        self._bound = (0, None)

    def __call__(self, *args):
        address = self._target.value
        bound = self._bound
        # Other threads may be at another generation, and bind what they found meanwhile.
        if bound[0] != address:
            self._bound = bound = (address, self._prototype(address))
        return bound[1](*args)

    def __del__(self):
        handle = getattr(self, "_handle", None)
        if handle:
            library().jitcast_handle_free(handle)


def _path(path):
    return path if isinstance(path, bytes) else str(path).encode()


def _imports(imports):
    """An array for the library, and what has to live as long."""
    kept = []
    array = (Import * len(imports))()
    for entry, (name, what) in zip(array, imports.items()):
        if not isinstance(what, int):
            signature, call = what
            function = prototype(signature)(call)
            kept.append(function)
            entry.signature = signature.encode()
            what = ctypes.cast(function, ctypes.c_void_p).value
        entry.size, entry.name, entry.function = ctypes.sizeof(Import), name.encode(), what
    return array, kept
