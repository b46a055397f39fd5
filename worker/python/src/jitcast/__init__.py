"""Calls functions that a compiler process publishes, and that are replaced while this process runs.

    worker = jitcast.Worker("/run/jitcast.sock")
    score = worker.function("score", "(i64) -> i64")
    with worker:
        print(score(21))
"""

import ctypes
import threading

from ._library import Import, Options, Statistics, library
from ._signature import prototype

__all__ = ["Error", "Function", "Request", "Worker"]

OK = 0
TIMED_OUT = 2
NOT_ATTACHED = 28
UNKNOWN_SIGNATURE = 33
FOREVER = 2**64 - 1

# Flags of jitcast_options.
STRICT = 1
LATE = 2


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

    With `late` there need not be a compiler process yet: the worker attaches by itself, when it is entered or tended. Until then a
    guard is none (`is_attached` is false in it), and functions made with a fallback call that.

    After os.fork() the child is a worker too. Servers that fork without calling os.fork() are no different.
    """

    def __init__(self, socket=None, *, fd=None, name=None, label=None, imports=None, strict=False, late=False):
        if [socket, fd, name].count(None) != 2:
            raise TypeError("say one of socket, fd and name")
        self._worker = ctypes.c_void_p()
        # What published code may call lives as long as this.
        self._imports = _imports(imports or {})
        self._is_late = late
        self._guards = _Guards()
        flags = (STRICT if strict else 0) | (LATE if late else 0)
        options = Options(size=ctypes.sizeof(Options), flags=flags)
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
        if not self._is_late:
            _check(library().jitcast_enter(self._worker, None))
            return self
        guards = self._guards.attached
        # What a guard that is none began goes on without, to its end.
        status = NOT_ATTACHED if guards and not guards[-1] else library().jitcast_enter(self._worker, None)
        if status != NOT_ATTACHED:
            _check(status)
        guards.append(status == OK)
        return self

    def __exit__(self, *_):
        if not self._is_late or not self._guards.attached or self._guards.attached.pop():
            _check(library().jitcast_leave(self._worker))

    @property
    def is_attached(self):
        """Whether this thread is inside a guard in which published functions are called; always, unless the worker is `late`."""
        return not self._is_late or self._guards.attached[-1:] == [True]

    def function(self, name, signature, *, fallback=None, vouch=False):
        """The function `name`, of a signature like `(i64, f64) -> f64`, which is compared with what was recorded when it was published.

        `fallback`, a callable, is called instead while it is not published, quarantined, or cannot be called here. If nothing was recorded
        (C without -g), the call is refused, unless `vouch` says that the signature is right, for every version to come.
        """
        return Function(self, library().jitcast_function, self._worker, name, signature, fallback, vouch)

    def ask(self, clif):
        """Has a text in Cranelift's language compiled for this worker, if it has the right. Does not wait: a Request, for the answer."""
        return Request(self, clif)

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
        return _waited(library().jitcast_wait(self._worker, seen, _nanoseconds(timeout)))

    def detach(self):
        """Detaches, while no thread is inside. Functions are of no use any more."""
        worker, self._worker = self._worker, ctypes.c_void_p()
        try:
            _check(library().jitcast_detach(worker))
        except Error:
            self._worker = worker
            raise


class _Guards(threading.local):
    """The guards that a thread has entered of a worker that attaches late, the innermost last: whether it was attached."""

    def __init__(self):
        self.attached = []


class Request:
    """What Worker.ask asked for. To be dropped before the worker is detached."""

    def __init__(self, worker, clif):
        self._worker = worker
        self._request = ctypes.c_void_p()
        _check(library().jitcast_ask(worker._worker, clif.encode(), ctypes.byref(self._request)))

    @property
    def is_ready(self):
        """Whether the answer is there: functions, or why there are none. Never waits; Worker.fileno is readable when something has come."""
        return library().jitcast_request_is_ready(self._request)

    def wait(self, timeout=None):
        """Waits for the answer, at most `timeout` seconds: whether it is there."""
        return _waited(library().jitcast_request_wait(self._request, _nanoseconds(timeout)))

    def function(self, name, signature, *, fallback=None, vouch=False):
        """The function `name` of what was compiled, as Worker.function. What the compiler process has against it is an Error here."""
        return Function(self._worker, library().jitcast_request_function, self._request, name, signature, fallback, vouch)

    def __del__(self):
        request = getattr(self, "_request", None)
        if request:
            library().jitcast_request_free(request)


class Function:
    """A published function, to be called inside a guard of its worker. Follows updates."""

    def __init__(self, worker, lookup, owner, name, signature, fallback, vouch):
        self.name = name
        self._prototype = prototype(signature)
        # The library calls it for as long as there is a handle.
        self._fallback = self._prototype(fallback) if fallback else None
        self._worker = worker
        self._handle = ctypes.c_void_p()
        fallback = ctypes.cast(self._fallback, ctypes.c_void_p) if fallback else None
        args = [owner, name.encode(), signature.encode(), fallback, ctypes.byref(self._handle)]
        status = lookup(*args)
        if status == UNKNOWN_SIGNATURE and vouch:
            args[2] = None
            status = lookup(*args)
        _check(status)
        # jitcast_handle begins with what is to be called. A load on x86-64 is the acquire load that jitcast_address is.
        self._target = ctypes.c_uint64.from_address(self._handle.value)
        self._bound = (0, None)

    def __call__(self, *args):
        # Outside guards a handle leads to what may be gone.
        if self._worker._is_late and self._fallback and not self._worker.is_attached:
            return self._fallback(*args)
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


def _nanoseconds(timeout):
    return FOREVER if timeout is None else int(timeout * 1e9)


def _waited(status):
    """Whether what was waited for came in time."""
    if status != TIMED_OUT:
        _check(status)
    return status != TIMED_OUT


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
