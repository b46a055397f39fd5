/*
 * jitcast.h: the worker side of jitcast for hosts in C and C++. Made by cbindgen from worker/capi/src; do not edit.
 *
 * A worker is a process's attachment to a segment of published code. A thread calls that code inside a guard:
 *
 *     jitcast_worker *worker;
 *     jitcast_handle *score;
 *     jitcast_thread *thread;
 *     jitcast_attach_path("/run/jitcast.sock", NULL, &worker);
 *     jitcast_function(worker, "score", "(i64) -> i64", NULL, &score);
 *     jitcast_thread_of(worker, &thread);                                once in each thread
 *     if (jitcast_thread_enter(thread, NULL) == JITCAST_STATUS_OK) {
 *         int64_t n = ((int64_t (*)(int64_t))jitcast_address(score))(21);
 *         jitcast_thread_leave(thread);
 *     }
 *
 * Functions may be called from any thread, but for what is a thread's own (jitcast_thread, jitcast_token). They return a
 * status; jitcast_last_error() has its text. In a child of fork(2) worker, handles and the forking thread's jitcast_thread
 * go on without a call, at the child's own. None of them is fit for signal handlers.
 */

#ifndef JITCAST_H
#define JITCAST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * What `alive` holds when the fast path may leave.
 */
#define JITCAST_THREAD_ALIVE 1

/**
 * From a thread's words to its pin, bytes.
 */
#define JITCAST_THREAD_TO_PIN 73664

/**
 * The version of the ABI, which is the number in the library's SONAME: raised when something that was there changes.
 */
#define JITCAST_ABI_VERSION 1

/**
 * In jitcast_options: published code may import what `imports` names, and nothing else.
 */
#define JITCAST_STRICT 1

/**
 * In jitcast_options: attach, even if there is no compiler process yet, or it does not answer within a second. It is looked for whenever a
 * guard is entered, a thread's record asked for, or the worker tended, less and less often, every five seconds in the end.
 * Until it has attached, jitcast_enter and jitcast_thread_of end with JITCAST_STATUS_NOT_ATTACHED: the host calls its own functions then,
 * outside guards. Handles with a fallback can be made at once, and follow.
 */
#define JITCAST_LATE 2

/**
 * In jitcast_options: a crash in published code (SIGSEGV, SIGBUS, SIGILL, SIGFPE) is reported on standard error, and in a file in
 * `crash_directory` if that is not NULL, before the signal goes to the handler that was there when the first such worker of the process
 * attached.
 */
#define JITCAST_CRASH_REPORTS 4

/**
 * For jitcast_wait: as long as it takes.
 */
#define JITCAST_FOREVER UINT64_MAX

/**
 * How a call ended. Numbers keep their meaning.
 */
typedef enum jitcast_status {
    /**
     * As it should.
     */
    JITCAST_STATUS_OK = 0,
    /**
     * An argument is none that the function takes: NULL, not UTF-8, a wrong size.
     */
    JITCAST_STATUS_INVALID_ARGUMENT = 1,
    /**
     * The time is over, and nothing has come.
     */
    JITCAST_STATUS_TIMED_OUT = 2,
    /**
     * A mistake of the library. It is to be reported; the worker should not be used any more.
     */
    JITCAST_STATUS_INTERNAL = 3,
    /**
     * There is no compiler process to talk to.
     */
    JITCAST_STATUS_CONNECT = 10,
    /**
     * It does not answer as it should.
     */
    JITCAST_STATUS_PROTOCOL = 11,
    /**
     * It said no.
     */
    JITCAST_STATUS_REFUSED = 12,
    /**
     * It is somebody else's.
     */
    JITCAST_STATUS_FOREIGN_COMPILER = 13,
    /**
     * The segment can be written by others.
     */
    JITCAST_STATUS_NOT_SEALED = 14,
    /**
     * The segment is not one that this process can use, or cannot be mapped.
     */
    JITCAST_STATUS_SEGMENT = 15,
    /**
     * A step of the system failed.
     */
    JITCAST_STATUS_SYSTEM = 16,
    /**
     * A library cannot be loaded.
     */
    JITCAST_STATUS_LIBRARY = 17,
    /**
     * This process was forked from a worker, and could not be made one.
     */
    JITCAST_STATUS_FORKED = 20,
    /**
     * All thread records of the worker are in use.
     */
    JITCAST_STATUS_TOO_MANY_THREADS = 21,
    /**
     * The thread is ending.
     */
    JITCAST_STATUS_THREAD_ENDS = 22,
    /**
     * The thread runs destructors of published code.
     */
    JITCAST_STATUS_WHILE_ENDING = 23,
    /**
     * What is published cannot be applied in this worker.
     */
    JITCAST_STATUS_UPDATE = 24,
    /**
     * The worker was detached.
     */
    JITCAST_STATUS_DETACHED = 25,
    /**
     * The thread holds no guard.
     */
    JITCAST_STATUS_NOT_INSIDE = 26,
    /**
     * The thread holds a guard.
     */
    JITCAST_STATUS_INSIDE = 27,
    /**
     * The worker has not attached yet.
     */
    JITCAST_STATUS_NOT_ATTACHED = 28,
    /**
     * Nothing is published under the name.
     */
    JITCAST_STATUS_NOT_FOUND = 30,
    /**
     * What is, is not a function.
     */
    JITCAST_STATUS_NOT_A_FUNCTION = 31,
    /**
     * It has another signature.
     */
    JITCAST_STATUS_SIGNATURE = 32,
    /**
     * Its signature was not recorded.
     */
    JITCAST_STATUS_UNKNOWN_SIGNATURE = 33,
    /**
     * It needs a host symbol that this process lacks.
     */
    JITCAST_STATUS_MISSING_IMPORT = 34,
    /**
     * Its unit failed in this worker.
     */
    JITCAST_STATUS_UNIT_FAILED = 35,
    /**
     * It is quarantined.
     */
    JITCAST_STATUS_QUARANTINED = 36,
    /**
     * Constructors of published code run.
     */
    JITCAST_STATUS_WHILE_STARTING = 37,
    /**
     * The thread is inside at an old generation, for which there is no handle.
     */
    JITCAST_STATUS_OUTDATED = 38,
    /**
     * The unit that had it is gone.
     */
    JITCAST_STATUS_GONE = 39,
    /**
     * The segment says something impossible.
     */
    JITCAST_STATUS_CORRUPT = 40,
    /**
     * There is no compiler process to ask.
     */
    JITCAST_STATUS_NOT_CONNECTED = 50,
    /**
     * It has too much to do, or has not read what was asked for before.
     */
    JITCAST_STATUS_BUSY = 51,
    /**
     * No answer has come yet.
     */
    JITCAST_STATUS_NOT_READY = 52,
    /**
     * The compiler process ended before it answered.
     */
    JITCAST_STATUS_LOST = 53,
} jitcast_status;

/**
 * What has happened. Others may be added: hosts that do not know a number have its text.
 */
typedef enum jitcast_event {
    /**
     * Something that has no number yet.
     */
    JITCAST_EVENT_OTHER = 0,
    /**
     * The compiler process is gone. The worker goes on with what it has, and looks for another one.
     */
    JITCAST_EVENT_DISCONNECTED = 1,
    /**
     * The worker goes on with another object: another compiler process's, or one to which the same one has moved.
     */
    JITCAST_EVENT_RENEWED = 2,
    /**
     * What the compiler process offered to go on with is not what this worker has.
     */
    JITCAST_EVENT_DECLINED = 3,
    /**
     * A unit failed in this worker.
     */
    JITCAST_EVENT_UNIT_FAILED = 4,
    /**
     * A host symbol is missing: functions that need it cannot be called in this worker.
     */
    JITCAST_EVENT_MISSING_IMPORT = 5,
    /**
     * An attempt to attach later came to nothing; it is tried again.
     */
    JITCAST_EVENT_NOT_ATTACHED = 6,
    /**
     * What a handle was made of before the worker attached is something else. The host's own function serves.
     */
    JITCAST_EVENT_UNFIT = 7,
    /**
     * Debuggers or profilers are not shown all that was asked for.
     */
    JITCAST_EVENT_NOT_SHOWN = 8,
} jitcast_event;

/**
 * A request that is under way or answered. Used by one thread at a time.
 */
typedef struct jitcast_request jitcast_request;

/**
 * A process's attachment to a segment, or to be.
 */
typedef struct jitcast_worker jitcast_worker;

/**
 * Some function: to be cast to its type.
 */
typedef void (*jitcast_code)(void);

/**
 * A host symbol that published code may import: a function or a datum, one of both. The caller fills `size`; members may be
 * added at the end.
 */
typedef struct jitcast_import {
    /**
     * sizeof(jitcast_import), as the caller's header has it, the same in all members of an array.
     */
    size_t size;
    /**
     * Its name.
     */
    const char *name;
    /**
     * The function, of the type that published code calls it as; NULL: it is a datum.
     */
    jitcast_code function;
    /**
     * The datum, of the type that published code takes it for; NULL: it is a function.
     */
    const void *datum;
    /**
     * The function's signature, as "(i64, f64) -> i32": published code that is known to call it by another one cannot be called in this worker
     * (JITCAST_STATUS_MISSING_IMPORT, with both in its text). NULL: the caller vouches for it.
     */
    const char *signature;
} jitcast_import;

/**
 * Who is told, with `log_context` of jitcast_options and a text that is there as long as the call. Called until the worker is detached, by
 * any thread that attaches, enters a guard or tends, by several at a time too, and with nothing locked, so that it may use the worker. It
 * returns: it neither jumps nor throws.
 */
typedef void (*jitcast_log)(void *context, enum jitcast_event event, const char *text);

/**
 * How to attach. The caller fills `size`, and the rest with zeros where it has nothing to say; members may be added at
 * the end. Nothing of it is used after the call, but what imports and `log` lead to.
 */
typedef struct jitcast_options {
    /**
     * sizeof(jitcast_options), as the caller's header has it.
     */
    size_t size;
    /**
     * What `jitcast status` shows, and canaries may be for; at most 63 bytes. NULL: nothing.
     */
    const char *label;
    /**
     * What published code may import, before what the process exports.
     */
    const struct jitcast_import *imports;
    /**
     * How many these are.
     */
    size_t import_count;
    /**
     * Shared libraries to load, whose symbols published code may import.
     */
    const char *const *libraries;
    /**
     * How many these are.
     */
    size_t library_count;
    /**
     * Users, besides root and the process's own, whose compiler process is trusted.
     */
    const uint32_t *trusted_uids;
    /**
     * How many these are.
     */
    size_t trusted_uid_count;
    /**
     * JITCAST_STRICT | JITCAST_LATE | JITCAST_CRASH_REPORTS, some of them or 0.
     */
    uint32_t flags;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * Who is told of what no call returns; NULL: nobody.
     */
    jitcast_log log;
    /**
     * What `log` is given.
     */
    void *log_context;
    /**
     * With JITCAST_CRASH_REPORTS, a folder for them; NULL: none.
     */
    const char *crash_directory;
    /**
     * What debuggers and profilers are shown, as "gdb,lines,jitdump,perf-map,dir=/var/tmp": any of these, in any order. NULL: what the
     * environment says in JITCAST_DEBUG, which asks for more otherwise.
     */
    const char *debug;
} jitcast_options;

/**
 * A handle of a function, which follows updates. jitcast_address says what to call.
 */
typedef struct jitcast_handle {
    /**
     * jitcast_address loads it.
     */
    uint64_t target;
} jitcast_handle;

/**
 * A thread in a worker, as the inline functions see it. Its members are theirs.
 */
typedef struct jitcast_thread {
    /**
     * The generation that was applied when the thread's door was opened last.
     */
    uint64_t generation;
    /**
     * The head of the ring; while the thread's door is shut, a word that no generation equals.
     */
    uint64_t * head;
    /**
     * 1 in the process that attached, 0 in a child that is no worker, 2 while threads are inside at
     * different generations.
     */
    uint64_t alive;
    /**
     * How many guards this thread holds besides the outermost one. The pin is set while it holds any: guards may be left in any
     * order.
     */
    uint32_t nested;
    /**
     * How often this thread enters before it has to go the slow way; always 0 in a worker whose guards execute a fence, which is
     * done there.
     */
    uint32_t polls;
    /**
     * What the library knows of the thread.
     */
    const void *record;
    /**
     * 1: the thread has ended, and may have guards still.
     */
    uint64_t ended;
} jitcast_thread;

/**
 * How deep a thread is inside: for hosts that leave by longjmp.
 */
typedef struct jitcast_token {
    /**
     * How many guards it holds.
     */
    uint32_t depth;
} jitcast_token;

/**
 * What a worker can say about itself. The caller fills `size`; members may be added at the end.
 */
typedef struct jitcast_statistics {
    /**
     * sizeof(jitcast_statistics), as the caller's header has it.
     */
    size_t size;
    /**
     * The number by which the compiler process knows the worker.
     */
    uint64_t number;
    /**
     * The base of its window.
     */
    uint64_t base;
    /**
     * The generation that it has applied.
     */
    uint64_t applied;
    /**
     * Publications applied.
     */
    uint64_t updates;
    /**
     * Times that it read the directory instead of the ring.
     */
    uint64_t resyncs;
    /**
     * Host symbols that it lacks.
     */
    uint64_t missing;
} jitcast_statistics;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the ABI of the library that runs: JITCAST_ABI_VERSION of the header, if the two belong together.
 */
uint32_t jitcast_abi_version(void);

/**
 * Attaches to the compiler process at the socket `path`, or, after an `@`, of that name in the abstract name space: maps the
 * segment, binds what is published, and runs its constructors. `options` may be NULL.
 *
 * Errors: JITCAST_STATUS_INVALID_ARGUMENT; JITCAST_STATUS_CONNECT; JITCAST_STATUS_PROTOCOL; JITCAST_STATUS_REFUSED;
 * JITCAST_STATUS_FOREIGN_COMPILER, if it is not this user's, root's or a trusted one's; JITCAST_STATUS_NOT_SEALED; JITCAST_STATUS_SEGMENT;
 * JITCAST_STATUS_SYSTEM; JITCAST_STATUS_LIBRARY; JITCAST_STATUS_UPDATE. Nothing is left behind then, but libraries that were loaded.
 *
 * Required:
 * `path` is null or a C string; `options` is null or as its description says; `worker` is null or can be stored to.
 */
enum jitcast_status jitcast_attach_path(const char *path,
                                        const struct jitcast_options *options,
                                        struct jitcast_worker **worker);

/**
 * The same, over a socket that is connected: inherited or handed over. It is the library's from then on if this succeeds, and else the
 * caller's. Such a worker does not look for another compiler process when this one is gone.
 *
 * Errors: those of jitcast_attach_path, but for JITCAST_STATUS_CONNECT.
 *
 * Required:
 * As for jitcast_attach_path; nobody else uses `fd`.
 */
enum jitcast_status jitcast_attach_fd(int fd,
                                      const struct jitcast_options *options,
                                      struct jitcast_worker **worker);

/**
 * The same, by the name of a named segment, whose header says where the socket is.
 *
 * Errors: those of jitcast_attach_path.
 *
 * Required:
 * As for jitcast_attach_path.
 */
enum jitcast_status jitcast_attach_name(const char *name,
                                        const struct jitcast_options *options,
                                        struct jitcast_worker **worker);

/**
 * Detaches: runs destructors of published code, and unmaps the segment. No thread is inside or enters any more, and every
 * jitcast_thread of the worker is void. Requests have been freed; handles are still to be. NULL is let pass.
 *
 * Errors: JITCAST_STATUS_INSIDE, if the calling thread holds a guard; then nothing has happened.
 *
 * Required:
 * `worker` is null, or attached and used by nobody else.
 */
enum jitcast_status jitcast_detach(struct jitcast_worker *worker);

/**
 * Makes a handle of the function `name`, to be freed by jitcast_handle_free. `signature`, as "(i64, f64) -> i32", is compared with
 * what was recorded at publication; NULL: the caller vouches for the type, of every version that will be published.
 * `fallback`, if it is not NULL, is called instead while the name is quarantined, not published (yet), or cannot be
 * called in this worker. A handle without one leads to a trap then, which ends the process with a message. Handles follow at the next
 * guard. While a worker that attaches late (JITCAST_LATE) has not, a handle with a fallback is made whatever will be published; what is
 * something else then is told (JITCAST_EVENT_UNFIT), and the fallback goes on to serve.
 *
 * Errors: those of jitcast_enter; JITCAST_STATUS_NOT_A_FUNCTION; JITCAST_STATUS_SIGNATURE; JITCAST_STATUS_UNKNOWN_SIGNATURE, if none was
 * recorded; JITCAST_STATUS_WHILE_STARTING; JITCAST_STATUS_OUTDATED; JITCAST_STATUS_CORRUPT; without a fallback also
 * JITCAST_STATUS_NOT_FOUND, JITCAST_STATUS_MISSING_IMPORT, JITCAST_STATUS_UNIT_FAILED, JITCAST_STATUS_QUARANTINED.
 *
 * Required:
 * `worker` is null or attached; `name` and `signature` are null or C strings; `fallback` is a function of the same type;
 * `handle` is null or can be stored to.
 */
enum jitcast_status jitcast_function(const struct jitcast_worker *worker,
                                     const char *name,
                                     const char *signature,
                                     jitcast_code fallback,
                                     struct jitcast_handle **handle);

/**
 * Frees a handle, which nobody uses any more. It may be of a worker that was detached, and NULL.
 *
 * Required:
 * `handle` is null or came from jitcast_function or jitcast_request_function, and is freed once.
 */
void jitcast_handle_free(struct jitcast_handle *handle);

/**
 * Finds the canonical address of the function `name`, its stub: for those who keep pointers. It leads to the current
 * version, is the same for all of them, and is to be called inside a guard, and only while the name is published.
 *
 * Errors: those of jitcast_function without a fallback and a signature.
 *
 * Required:
 * `worker` is null or attached; `name` is null or a C string; `code` is null or can be stored to.
 */
enum jitcast_status jitcast_stub(const struct jitcast_worker *worker, const char *name, jitcast_code *code);

/**
 * Fetches the calling thread's record in `worker`, which the inline functions take. It is there until the thread ends or
 * the worker is detached, and is no other thread's business.
 *
 * Errors: JITCAST_STATUS_INVALID_ARGUMENT; JITCAST_STATUS_NOT_ATTACHED, of a worker that attaches late; JITCAST_STATUS_FORKED, in a child that is no worker;
 * JITCAST_STATUS_TOO_MANY_THREADS; JITCAST_STATUS_THREAD_ENDS; JITCAST_STATUS_WHILE_ENDING.
 *
 * Required:
 * `worker` is null or attached; `thread` is null or can be stored to.
 */
enum jitcast_status jitcast_thread_of(const struct jitcast_worker *worker,
                                      struct jitcast_thread **thread);

/**
 * Enters a guard: applies what is new, unless the calling thread is inside already, and pins the thread. `token`, if it
 * is not NULL, is for jitcast_unwind. Everything that is called under the outermost guard belongs to one generation.
 *
 * Errors: those of jitcast_thread_of; JITCAST_STATUS_UPDATE, if what was published cannot be applied. The thread holds as many
 * guards as before then, and goes on without published code.
 *
 * Required:
 * `worker` is null or attached; `token` is null or can be stored to.
 */
enum jitcast_status jitcast_enter(const struct jitcast_worker *worker,
                                  struct jitcast_token *token);

/**
 * Leaves a guard of the calling thread, however it was entered.
 *
 * Errors: JITCAST_STATUS_INVALID_ARGUMENT; JITCAST_STATUS_NOT_INSIDE.
 *
 * Required:
 * `worker` is null or attached.
 */
enum jitcast_status jitcast_leave(const struct jitcast_worker *worker);

/**
 * How deep the calling thread is inside `worker`, for jitcast_unwind: 0 where it is not, and where `worker` is NULL.
 *
 * Required:
 * `worker` is null or attached.
 */
struct jitcast_token jitcast_take_token(const struct jitcast_worker *worker);

/**
 * Leaves every guard that the calling thread entered after `token` was taken: after a longjmp out of published code, past
 * the guards that it was called in. Where the token is that of jitcast_enter, that guard itself is still there.
 *
 * Errors: JITCAST_STATUS_INVALID_ARGUMENT, also if the thread is not as deep inside as the token says;
 * JITCAST_STATUS_FORKED, in a child that is no worker.
 *
 * Required:
 * `worker` is null or attached.
 */
enum jitcast_status jitcast_unwind(const struct jitcast_worker *worker,
                                   struct jitcast_token token);

/**
 * What jitcast_thread_enter calls where the common case does not hold. Not to be called otherwise.
 *
 * Errors: those of jitcast_enter.
 *
 * Required:
 * `thread` is null or the calling thread's; `token` is null or can be stored to.
 */
enum jitcast_status jitcast_enter_slowly(struct jitcast_thread *thread, struct jitcast_token *token);

/**
 * What jitcast_thread_leave calls where the common case does not hold. Not to be called otherwise.
 *
 * Errors: JITCAST_STATUS_INVALID_ARGUMENT; JITCAST_STATUS_NOT_INSIDE; JITCAST_STATUS_FORKED, in a child that is no worker.
 *
 * Required:
 * `thread` is null or the calling thread's.
 */
enum jitcast_status jitcast_leave_slowly(struct jitcast_thread *thread);

/**
 * Asks the compiler process to compile `clif` for this worker, if it has the right (`serve --allow-request`): functions that may call published functions and
 * host symbols, but have no names for anybody else. Equal texts of many workers are compiled once. Does not wait: jitcast_fd is readable when
 * something has come. The request is to be freed by jitcast_request_free, before the worker is detached.
 *
 * Errors: JITCAST_STATUS_INVALID_ARGUMENT; JITCAST_STATUS_NOT_ATTACHED; JITCAST_STATUS_NOT_CONNECTED; JITCAST_STATUS_BUSY;
 * JITCAST_STATUS_WHILE_STARTING. What the compiler process says comes with jitcast_request_function.
 *
 * Required:
 * `worker` is null or attached; `clif` is null or a C string; `request` is null or can be stored to.
 */
enum jitcast_status jitcast_ask(const struct jitcast_worker *worker,
                                const char *clif,
                                struct jitcast_request **request);

/**
 * Whether the answer is there: functions, or why there are none. Looks at the connection, and never waits. false if `request` is NULL.
 *
 * Required:
 * `request` is null or came from jitcast_ask, and nobody else uses it.
 */
bool jitcast_request_is_ready(const struct jitcast_request *request);

/**
 * Waits for the answer, at most `timeout_ns` nanoseconds or JITCAST_FOREVER.
 *
 * Errors: JITCAST_STATUS_TIMED_OUT; JITCAST_STATUS_INVALID_ARGUMENT.
 *
 * Required:
 * As for jitcast_request_is_ready.
 */
enum jitcast_status jitcast_request_wait(const struct jitcast_request *request, uint64_t timeout_ns);

/**
 * Makes a handle of function `name` of what was compiled, as jitcast_function does of a published one; `fallback`, if it is not NULL, is
 * called instead once the unit is gone, because what it refers to was removed, or the compiler process ended. The unit is there as long as
 * the request or a handle of it.
 *
 * Errors: those of jitcast_function; JITCAST_STATUS_NOT_READY;
 * JITCAST_STATUS_REFUSED, with the compiler's words; JITCAST_STATUS_BUSY, ask again later; JITCAST_STATUS_LOST; JITCAST_STATUS_OUTDATED, if
 * the thread is inside at a generation that does not have it yet; JITCAST_STATUS_GONE, ask again; JITCAST_STATUS_FORKED, if the parent asked.
 *
 * Required:
 * As for jitcast_request_is_ready; the rest as for jitcast_function.
 */
enum jitcast_status jitcast_request_function(struct jitcast_request *request,
                                             const char *name,
                                             const char *signature,
                                             jitcast_code fallback,
                                             struct jitcast_handle **handle);

/**
 * Frees a request, which is given up if it is not answered. Handles stay. NULL is let pass.
 *
 * Required:
 * `request` is null or came from jitcast_ask, nobody uses it any more, and it is freed once.
 */
void jitcast_request_free(struct jitcast_request *request);

/**
 * The text of the calling thread's last error, with a line that says what to do where there is something; "" if there
 * was none. Valid until the thread's next call that fails. Calls that succeed leave it as it is; JITCAST_STATUS_TIMED_OUT has no
 * text. Never NULL.
 */
const char *jitcast_last_error(void);

/**
 * Writes what is at `address` into `text`, as "twice+0x12 (score)": a function, static ones too, how far into it, and its unit. What does
 * not fit into `size` bytes with the zero at the end is left out. Of a frame's return address, as backtrace(3) gives them, pass one
 * less: the call may be the last thing that its function does. Not for signal handlers, which store addresses.
 *
 * Errors: those of jitcast_enter; JITCAST_STATUS_NOT_FOUND: no published code of this worker is there, and `text` is empty.
 *
 * Required:
 * `worker` is null or attached; `text` is null or can be stored to, `size` bytes.
 */
enum jitcast_status jitcast_symbolize(const struct jitcast_worker *worker,
                                      const void *address,
                                      char *text,
                                      size_t size);

/**
 * The descriptor of the connection to the compiler process, for an event loop: when it is readable or has hung up, jitcast_tend is to be called.
 * Publications do not show there: guards find them, and jitcast_wait. The descriptor is the library's: it is neither read nor closed. -1 if
 * `worker` is NULL, or has not attached yet.
 *
 * The number stays the same, but leads to another file once another compiler process is found, which epoll(7) does not notice; until
 * then it goes on to show that the first one has hung up. So a loop stops watching it at JITCAST_EVENT_DISCONNECTED, calls jitcast_tend now
 * and then, and watches it again at JITCAST_EVENT_RENEWED, unless it still does: that is told of the same connection, too.
 *
 * Required:
 * `worker` is null or attached.
 */
int jitcast_fd(const struct jitcast_worker *worker);

/**
 * Looks whether the compiler process is still there; if not, for another one that goes on with its journal. Never waits. To be called
 * when jitcast_fd shows something, and, while the worker is not connected, now and then. Guards do it every 65,536th time.
 *
 * Errors: JITCAST_STATUS_INVALID_ARGUMENT.
 *
 * Required:
 * `worker` is null or attached.
 */
enum jitcast_status jitcast_tend(const struct jitcast_worker *worker);

/**
 * Whether the compiler process was there when somebody last looked (jitcast_tend).
 *
 * Required:
 * `worker` is null or attached.
 */
bool jitcast_is_connected(const struct jitcast_worker *worker);

/**
 * Waits until something newer than generation `seen` is published, at most `timeout_ns` nanoseconds or JITCAST_FOREVER, and tends the
 * worker meanwhile; one that attaches late has to attach first. To be called outside guards.
 *
 * Errors: JITCAST_STATUS_TIMED_OUT; JITCAST_STATUS_INVALID_ARGUMENT.
 *
 * Required:
 * `worker` is null or attached.
 */
enum jitcast_status jitcast_wait(const struct jitcast_worker *worker,
                                 uint64_t seen,
                                 uint64_t timeout_ns);

/**
 * The generation that the calling thread is inside at, or else the one that the worker has applied; 0 if `worker` is NULL.
 *
 * Required:
 * `worker` is null or attached.
 */
uint64_t jitcast_generation(const struct jitcast_worker *worker);

/**
 * Fills `statistics`, as far as its `size` goes; what a newer header has besides becomes 0.
 *
 * Errors: JITCAST_STATUS_INVALID_ARGUMENT.
 *
 * Required:
 * `worker` is null or attached; `statistics` is null, or can be stored to for as many bytes as its `size` says.
 */
enum jitcast_status jitcast_stats(const struct jitcast_worker *worker, struct jitcast_statistics *statistics);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* JITCAST_H */

/*
 * Entering and leaving without a call: what Door::enter (runtime/src/gate.rs) and pin::leave (runtime/src/pin.rs) do, on
 * the same words. Everything but the common case is left to the library, which does the whole again. Hence a thread may
 * enter by one of both ways and leave by the other.
 *
 * `thread` is the calling thread's, and not NULL.
 */

/* What seldom holds: the common case is laid out in one piece. */
#define JITCAST_SELDOM(condition) __builtin_expect((condition) != 0, 0)

/* The thread's pin, in the worker's mailbox: 0 where it is outside. */
static inline uint64_t *jitcast_thread_pin(const jitcast_thread *thread)
{
    return (uint64_t *)((uintptr_t)thread + JITCAST_THREAD_TO_PIN);
}

/**
 * Enters a guard: applies what is new, unless the thread is inside already, and pins the thread. `token`, if it is not
 * NULL, is for jitcast_unwind.
 *
 * Errors: as jitcast_enter.
 */
static inline jitcast_status jitcast_thread_enter(jitcast_thread *thread, jitcast_token *token)
{
    uint64_t *const pin = jitcast_thread_pin(thread);
    const uint32_t polls = thread->polls;
    uint32_t depth = 1;
    /* Every 65,536th poll tends the worker; each is slow in one that membarrier(2) cannot reach, and that executes fences, and in a
       child that is no worker, where all these words are zeros. */
    if (JITCAST_SELDOM(polls == 0))
        return jitcast_enter_slowly(thread, token);
    if (JITCAST_SELDOM(__atomic_load_n(pin, __ATOMIC_RELAXED) != 0)) {
        depth = ++thread->nested + 1;
    } else {
        /* Acquire: pairs with the release in Door::open. Who sees the generation does not see a door that was open before. */
        const uint64_t generation = __atomic_load_n(&thread->generation, __ATOMIC_ACQUIRE);
        const uint64_t *head;
        thread->polls = polls - 1;
        /* The pin, then the head, with the light half of a barrier between them (pin::light_barrier): pairs with the
           membarrier(2) that the compiler process executes between publishing and looking at pins, so either it sees
           this pin, or this thread a head at least as new as what was published; and with the one of who applies, after
           shutting the door: it sees this pin, or this thread a word that no generation equals. */
        __atomic_store_n(pin, generation, __ATOMIC_RELAXED);
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        /* Acquire: pair with the releases in Door::open and of the head in Ring::publish. */
        head = __atomic_load_n(&thread->head, __ATOMIC_ACQUIRE);
        if (JITCAST_SELDOM(__atomic_load_n(head, __ATOMIC_ACQUIRE) != generation)) {
            __atomic_store_n(pin, (uint64_t)0, __ATOMIC_RELEASE);
            return jitcast_enter_slowly(thread, token);
        }
    }
    if (token != NULL)
        token->depth = depth;
    return JITCAST_STATUS_OK;
}

/**
 * Leaves a guard. The thread holds one: where it does not, nothing happens, and only a host that is compiled with JITCAST_CHECKED is
 * told.
 *
 * Errors: JITCAST_STATUS_FORKED, in a child that is no worker; JITCAST_STATUS_NOT_INSIDE, if JITCAST_CHECKED is defined.
 */
static inline jitcast_status jitcast_thread_leave(jitcast_thread *thread)
{
    const uint32_t nested = thread->nested;
    if (JITCAST_SELDOM(nested != 0)) {
        thread->nested = nested - 1;
        return JITCAST_STATUS_OK;
    }
    /* In a child whose pin is its parent's; or while threads are inside at different generations. */
    if (JITCAST_SELDOM(__atomic_load_n(&thread->alive, __ATOMIC_RELAXED) != JITCAST_THREAD_ALIVE))
        return jitcast_leave_slowly(thread);
#ifdef JITCAST_CHECKED
    if (__atomic_load_n(jitcast_thread_pin(thread), __ATOMIC_RELAXED) == 0)
        return jitcast_leave_slowly(thread);
#endif
    /* Release: pairs with the acquire loads of pins (pin::oldest, Mailbox::pins). What the thread did inside happens
       before what it was inside of is reused. */
    __atomic_store_n(jitcast_thread_pin(thread), (uint64_t)0, __ATOMIC_RELEASE);
    return JITCAST_STATUS_OK;
}

/** How deep the thread is inside, for jitcast_unwind: as jitcast_take_token. */
static inline jitcast_token jitcast_thread_token(const jitcast_thread *thread)
{
    jitcast_token token;
    const int outermost = __atomic_load_n(&thread->alive, __ATOMIC_RELAXED) != 0
                          && __atomic_load_n(jitcast_thread_pin(thread), __ATOMIC_RELAXED) != 0;
    token.depth = thread->nested + (uint32_t)outermost;
    return token;
}

/**
 * What to call for `handle`, which is not NULL, inside a guard of its worker. It is good for as long as the outermost guard:
 * load it again in the next one. To be cast to the function's type.
 */
static inline jitcast_code jitcast_address(const jitcast_handle *handle)
{
    /* Acquire: pairs with the release in Place::store (worker/src/transition.rs): what was bound is there. */
    return (jitcast_code)(uintptr_t)__atomic_load_n(&handle->target, __ATOMIC_ACQUIRE);
}
