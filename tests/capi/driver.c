/* A worker in C that does what its standard input says, line by line, and answers each line with one. C11 and C++17. */

#define _POSIX_C_SOURCE 200809L
#include <execinfo.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jitcast.h>

typedef int64_t (*function)(int64_t);

static jitcast_worker *worker;
static jitcast_thread *thread;
static jitcast_handle *handle;
static jitcast_request *request;
static jmp_buf jump;

static int64_t fall_back(int64_t n)
{
    return -n;
}

static int64_t triple(int64_t n)
{
    return 3 * n;
}

static int64_t bail(int64_t n)
{
    longjmp(jump, (int)n);
}

/* Looks at the stack from below published code: what of it is published. */
static char walked[512];

static int64_t walk(int64_t n)
{
    void *frames[64];
    char name[64];
    int at, count = backtrace(frames, 64);
    walked[0] = '\0';
    for (at = 0; at < count; at++)
        if (jitcast_symbolize(worker, (char *)frames[at] - 1, name, sizeof name) == JITCAST_STATUS_OK) {
            strncat(walked, " ", sizeof walked - strlen(walked) - 1);
            strncat(walked, name, sizeof walked - strlen(walked) - 1);
        }
    return n;
}

static int64_t datum = 1000;

static void answer(jitcast_status status)
{
    const char *text;
    printf("status %d", (int)status);
    if (status != JITCAST_STATUS_OK && status != JITCAST_STATUS_TIMED_OUT) {
        printf(": ");
        for (text = jitcast_last_error(); *text != '\0'; text++)
            putchar(*text == '\n' ? '|' : *text);
    }
    printf("\n");
}

static void must(jitcast_status status, const char *what)
{
    if (status != JITCAST_STATUS_OK) {
        printf("%s: ", what);
        answer(status);
        fflush(stdout);
        exit(3);
    }
}

static void check(int holds, const char *what)
{
    if (!holds) {
        printf("not so: %s\n", what);
        fflush(stdout);
        exit(4);
    }
}

static void watch(void);

/* What the worker told since somebody asked. */
static char told[4096];
static size_t told_len;

/* An event loop that watches the connection, if there is one. */
static int loop = -1;

static void tell(void *context, jitcast_event event, const char *text)
{
    if (loop >= 0 && event == JITCAST_EVENT_DISCONNECTED)
        check(epoll_ctl(loop, EPOLL_CTL_DEL, jitcast_fd(worker), NULL) == 0, "it was watched");
    if (loop >= 0 && event == JITCAST_EVENT_RENEWED)
        watch();
    check(context == &datum, "the context is what was given");
    check(worker == NULL || jitcast_tend(worker) == JITCAST_STATUS_OK, "the worker can be used");
    told_len += (size_t)snprintf(told + told_len, sizeof told - told_len, " %d %.400s;", (int)event, text);
    check(told_len < sizeof told, "room for what is told");
}

static void events(void)
{
    size_t index;
    for (index = 0; index < told_len; index++) {
        if (told[index] == '\n')
            told[index] = '|';
    }
    told[told_len] = '\0';
    printf("told%s\n", told);
    told_len = 0;
}

static jitcast_status attach(const char *how, const char *where, const char *mode)
{
    jitcast_options options;
    jitcast_import imports[4];
    const char *libraries[] = {"libm.so.6"};
    memset(&options, 0, sizeof options);
    memset(imports, 0, sizeof imports);
    options.size = sizeof options;
    options.label = "driver";
    options.log = tell;
    options.log_context = &datum;
    imports[0].size = imports[1].size = imports[2].size = imports[3].size = sizeof imports[0];
    imports[0].name = "triple";
    imports[0].function = (jitcast_code)triple;
    imports[0].signature = "(i64) -> i64";
    imports[1].name = "bail";
    imports[1].function = (jitcast_code)bail;
    imports[2].name = "host_datum";
    imports[2].datum = &datum;
    imports[3].name = "walk";
    imports[3].function = (jitcast_code)walk;
    options.imports = imports;
    options.import_count = 4;
    if (strcmp(mode, "strict") == 0) {
        options.flags = JITCAST_STRICT;
    } else {
        options.flags = strcmp(mode, "late") == 0 ? JITCAST_LATE : 0;
        options.libraries = libraries;
        options.library_count = 1;
    }
    if (strcmp(how, "name") == 0)
        return jitcast_attach_name(where, &options, &worker);
    if (strcmp(how, "fd") == 0)
        return jitcast_attach_fd(atoi(where), &options, &worker);
    return jitcast_attach_path(where, &options, &worker);
}

static int64_t call(int64_t n)
{
    return ((function)jitcast_address(handle))(n);
}

static void inline_call(int64_t n)
{
    jitcast_status status = thread == NULL ? jitcast_thread_of(worker, &thread) : JITCAST_STATUS_OK;
    if (status == JITCAST_STATUS_OK)
        status = jitcast_thread_enter(thread, NULL);
    if (status != JITCAST_STATUS_OK) {
        answer(status);
        return;
    }
    printf("result %" PRId64 " at %" PRIu64 "\n", call(n), jitcast_generation(worker));
    must(jitcast_thread_leave(thread), "leave");
}

static void exported_call(int64_t n)
{
    must(jitcast_enter(worker, NULL), "enter");
    printf("result %" PRId64 " at %" PRIu64 "\n", call(n), jitcast_generation(worker));
    must(jitcast_leave(worker), "leave");
}

/* Every order of two guards, each entered and left by either way. */
static void mixed(void)
{
    int way;
    for (way = 0; way < 16; way++) {
        jitcast_token first, second;
        must(way & 1 ? jitcast_enter(worker, &first) : jitcast_thread_enter(thread, &first), "first");
        must(way & 2 ? jitcast_enter(worker, &second) : jitcast_thread_enter(thread, &second), "second");
        check(first.depth == 1 && second.depth == 2, "each guard is deeper by one");
        check(jitcast_take_token(worker).depth == 2 && jitcast_thread_token(thread).depth == 2, "two guards");
        must(way & 4 ? jitcast_leave(worker) : jitcast_thread_leave(thread), "leave one");
        check(*jitcast_thread_pin(thread) == jitcast_generation(worker), "the pin stays for the outer guard");
        must(way & 8 ? jitcast_leave(worker) : jitcast_thread_leave(thread), "leave the other");
        check(*jitcast_thread_pin(thread) == 0 && jitcast_take_token(worker).depth == 0, "nothing is left");
    }
    printf("mixed\n");
}

/* Published code calls `bail` two guards deep. */
static void jump_out(void)
{
    jitcast_token token;
    volatile int64_t came;
    must(jitcast_thread_enter(thread, &token), "enter");
    came = setjmp(jump);
    if (came == 0) {
        must(jitcast_enter(worker, NULL), "enter");
        call(7);
        check(0, "it jumps");
    }
    check(jitcast_thread_token(thread).depth == 2, "the inner guard was not left");
    must(jitcast_unwind(worker, token), "unwind");
    check(jitcast_thread_token(thread).depth == 1, "the outer guard is there");
    token.depth = 0;
    must(jitcast_unwind(worker, token), "unwind all");
    check(*jitcast_thread_pin(thread) == 0, "the thread is outside");
    token.depth = 1;
    check(jitcast_unwind(worker, token) == JITCAST_STATUS_INVALID_ARGUMENT, "deeper than the thread is");
    printf("jumped %d\n", (int)came);
}

static void in_child(int64_t n)
{
    pid_t child = fork();
    int status = 0;
    check(child >= 0, "fork");
    if (child == 0) {
        int64_t a, b;
        must(jitcast_thread_enter(thread, NULL), "enter in the child");
        a = call(n);
        must(jitcast_thread_leave(thread), "leave in the child");
        must(jitcast_enter(worker, NULL), "enter in the child");
        b = call(n);
        must(jitcast_leave(worker), "leave in the child");
        check(a == b, "both ways give the same");
        must(jitcast_detach(worker), "detach in the child");
        jitcast_handle_free(handle);
        _exit((int)a);
    }
    check(waitpid(child, &status, 0) == child && WIFEXITED(status), "the child ends");
    printf("child %d\n", WEXITSTATUS(status));
}

static int64_t awaited;

/* Calls until the awaited version is there; both calls of a guard must give the same. */
static void *until_new(void *unused)
{
    jitcast_thread *own;
    int64_t seen = 0, before = 0;
    (void)unused;
    must(jitcast_thread_of(worker, &own), "thread");
    while (seen < awaited) {
        int64_t again;
        must(jitcast_thread_enter(own, NULL), "enter");
        seen = call(0);
        must(jitcast_enter(worker, NULL), "enter inside");
        again = call(0);
        must(jitcast_thread_leave(own), "leave");
        must(jitcast_leave(worker), "leave");
        check(again == seen, "a guard has one version");
        check(seen >= before, "versions do not go back");
        before = seen;
    }
    return NULL;
}

static void threads(int count)
{
    pthread_t ids[16];
    int index;
    for (index = 0; index < count; index++)
        check(pthread_create(&ids[index], NULL, until_new, NULL) == 0, "pthread_create");
    for (index = 0; index < count; index++)
        check(pthread_join(ids[index], NULL) == 0, "pthread_join");
    printf("threads saw %" PRId64 "\n", awaited);
}

/* The pause of an event loop, until the connection hangs up. */
static void await_hang_up(void)
{
    struct pollfd watched;
    memset(&watched, 0, sizeof watched);
    watched.fd = jitcast_fd(worker);
    watched.events = POLLIN;
    while (jitcast_is_connected(worker)) {
        check(poll(&watched, 1, -1) == 1, "poll");
        must(jitcast_tend(worker), "tend");
    }
    /* It may have been looked at last for something that came before. */
    check(poll(&watched, 1, 0) == 1, "poll");
    printf("hung up %#x\n", (unsigned)watched.revents & (unsigned)POLLHUP);
}

static void reconnect(void)
{
    struct pollfd nothing;
    memset(&nothing, 0, sizeof nothing);
    while (!jitcast_is_connected(worker)) {
        poll(&nothing, 0, 5);
        must(jitcast_tend(worker), "tend");
    }
    printf("connected\n");
}

static void watch(void)
{
    struct epoll_event wanted;
    memset(&wanted, 0, sizeof wanted);
    wanted.events = EPOLLIN;
    check(epoll_ctl(loop, EPOLL_CTL_ADD, jitcast_fd(worker), &wanted) == 0, "it can be watched");
}

/* An event loop, which looks by itself only while there is no connection, until that is lost a second time. */
static void event_loop(void)
{
    int connected = 1, lost = 0;
    loop = epoll_create1(0);
    watch();
    while (lost < 2) {
        struct epoll_event event;
        check(epoll_wait(loop, &event, 1, connected ? -1 : 5) >= 0, "epoll_wait");
        must(jitcast_tend(worker), "tend");
        if (connected == (int)jitcast_is_connected(worker))
            continue;
        connected = !connected;
        lost += !connected;
        printf("%s\n", connected ? "found" : "lost");
        fflush(stdout);
    }
    close(loop);
    loop = -1;
}

/* Asks for what a file holds. */
static void ask(const char *path)
{
    static char clif[4096];
    FILE *file = fopen(path, "r");
    check(file != NULL, path);
    clif[fread(clif, 1, sizeof clif - 1, file)] = '\0';
    fclose(file);
    answer(jitcast_ask(worker, clif, &request));
}

/* The pause of an event loop, until the answer is there; then the function that it is about. */
static void take(const char *name, const char *signature)
{
    struct pollfd watched;
    memset(&watched, 0, sizeof watched);
    watched.fd = jitcast_fd(worker);
    watched.events = POLLIN;
    while (!jitcast_request_is_ready(request))
        check(poll(&watched, 1, -1) == 1, "poll");
    must(jitcast_request_wait(request, JITCAST_FOREVER), "wait");
    jitcast_handle_free(handle);
    handle = NULL;
    answer(jitcast_request_function(request, name, signature, (jitcast_code)fall_back, &handle));
    jitcast_request_free(request);
    request = NULL;
}

static void statistics(void)
{
    struct {
        jitcast_statistics known;
        uint64_t newer;
    } stats;
    memset(&stats, 0xff, sizeof stats);
    stats.known.size = sizeof stats;
    must(jitcast_stats(worker, &stats.known), "stats");
    check(stats.newer == 0, "what the library does not know is 0");
    check(stats.known.size == sizeof stats && stats.known.base != 0, "size and base");
    printf("worker %" PRIu64 " at %" PRIu64 " lacks %" PRIu64 "\n", stats.known.number, stats.known.applied,
        stats.known.missing);
}

/* A worker that has not attached has nothing to give, and says so. */
static void without(void)
{
    jitcast_statistics stats;
    jitcast_token token;
    jitcast_code code;
    const jitcast_status late = JITCAST_STATUS_NOT_ATTACHED;
    memset(&stats, 0, sizeof stats);
    stats.size = sizeof stats;
    token.depth = 0;
    check(jitcast_enter(worker, &token) == late && jitcast_leave(worker) == late, "no guard");
    check(jitcast_stub(worker, "f", &code) == late && jitcast_stats(worker, &stats) == late, "nothing is known");
    check(jitcast_ask(worker, "", &request) == late && request == NULL, "nobody is asked");
    check(jitcast_unwind(worker, token) == late && jitcast_take_token(worker).depth == 0, "the thread is outside");
    check(jitcast_fd(worker) == -1 && jitcast_generation(worker) == 0 && !jitcast_is_connected(worker), "no connection");
    check(jitcast_wait(worker, 0, 1000000) == JITCAST_STATUS_TIMED_OUT, "nothing comes");
    printf("nothing\n");
}

/* Arguments that are refused. */
static void wrong_arguments(void)
{
    jitcast_worker *other = NULL;
    jitcast_options options;
    jitcast_import import;
    jitcast_statistics stats;
    jitcast_handle *none = NULL;
    jitcast_token token;
    jitcast_code code;
    char text[32];
    const jitcast_status wrong = JITCAST_STATUS_INVALID_ARGUMENT;
    const char not_utf8[] = {(char)0xff, 0};
    struct {
        jitcast_options known;
        uint64_t newer;
    } newer;
    token.depth = 0;
    memset(&options, 0, sizeof options);
    memset(&newer, 0, sizeof newer);
    memset(&stats, 0, sizeof stats);
    check(jitcast_abi_version() == JITCAST_ABI_VERSION, "the header is the library's");
    check(jitcast_attach_path(NULL, NULL, &other) == wrong, "no path");
    check(jitcast_attach_path("/nowhere", NULL, NULL) == wrong, "no place for the worker");
    check(jitcast_attach_path("/nowhere", NULL, &other) == JITCAST_STATUS_CONNECT, "nobody there");
    check(strstr(jitcast_last_error(), "help: start it with `jitcast serve --socket /nowhere`") != NULL, "help");
    check(jitcast_attach_path("/nowhere", &options, &other) == wrong, "no size");
    check(strstr(jitcast_last_error(), "`options.size` is 0") != NULL, "it is named");
    options.size = sizeof options;
    options.flags = 8;
    check(jitcast_attach_path("/nowhere", &options, &other) == wrong, "an unknown flag");
    options.flags = 0;
    options.size = offsetof(jitcast_options, log);
    check(jitcast_attach_path("/nowhere", &options, &other) == JITCAST_STATUS_CONNECT, "an older header");
    options.size -= sizeof(void *);
    check(jitcast_attach_path("/nowhere", &options, &other) == wrong, "no header was so small");
    options.size = sizeof options;
    options.import_count = 1;
    check(jitcast_attach_path("/nowhere", &options, &other) == wrong, "no imports, but one");
    memset(&import, 0, sizeof import);
    options.imports = &import;
    import.size = offsetof(jitcast_import, signature);
    import.name = "datum";
    import.datum = &datum;
    check(jitcast_attach_path("/nowhere", &options, &other) == JITCAST_STATUS_CONNECT, "an older import");
    import.size = sizeof import;
    import.signature = "(i64) -> i64";
    check(jitcast_attach_path("/nowhere", &options, &other) == wrong, "a datum has no signature");
    import.datum = NULL;
    import.function = (jitcast_code)triple;
    import.signature = "(i65)";
    check(jitcast_attach_path("/nowhere", &options, &other) == wrong, "no signature");
    options.imports = NULL;
    options.import_count = 0;
    options.debug = "gdb,nothing";
    check(jitcast_attach_path("/nowhere", &options, &other) == wrong, "nothing that can be shown");
    options.debug = "gdb,lines";
    check(jitcast_attach_path("/nowhere", &options, &other) == JITCAST_STATUS_CONNECT, "what can be shown");
    options.debug = NULL;
    check(jitcast_symbolize(worker, &datum, text, sizeof text) == JITCAST_STATUS_NOT_FOUND && text[0] == '\0', "no code");
    check(jitcast_symbolize(worker, &datum, text, 0) == wrong, "no room");
    check(jitcast_symbolize(worker, &datum, NULL, 8) == wrong, "no text");
    check(jitcast_symbolize(NULL, &datum, text, sizeof text) == wrong, "no worker to ask");
    newer.known.size = sizeof newer;
    check(jitcast_attach_path("/nowhere", &newer.known, &other) == JITCAST_STATUS_CONNECT, "a newer header");
    newer.newer = 1;
    check(jitcast_attach_path("/nowhere", &newer.known, &other) == wrong, "a newer header's wish");
    check(jitcast_attach_fd(-1, NULL, &other) == wrong && jitcast_attach_fd(12345, NULL, &other) == wrong, "no descriptor");
    check(jitcast_attach_name(not_utf8, NULL, &other) == wrong && other == NULL, "not UTF-8");
    check(jitcast_enter(NULL, NULL) == wrong && jitcast_leave(NULL) == wrong, "no worker");
    check(jitcast_thread_of(worker, NULL) == wrong && jitcast_thread_of(NULL, NULL) == wrong, "no thread");
    check(jitcast_unwind(NULL, token) == wrong && jitcast_take_token(NULL).depth == 0, "no worker");
    check(jitcast_function(worker, NULL, NULL, NULL, &none) == wrong, "no name");
    check(jitcast_function(worker, "f", "(i65)", NULL, &none) == wrong, "no signature");
    check(jitcast_function(worker, "f", NULL, NULL, NULL) == wrong && none == NULL, "no place");
    check(jitcast_stub(worker, "f", NULL) == wrong && jitcast_stub(NULL, "f", &code) == wrong, "no stub");
    check(jitcast_stats(worker, &stats) == wrong && jitcast_stats(worker, NULL) == wrong, "no size");
    check(jitcast_tend(NULL) == wrong && jitcast_wait(NULL, 0, 0) == wrong, "no worker");
    check(jitcast_fd(NULL) == -1 && jitcast_generation(NULL) == 0 && !jitcast_is_connected(NULL), "no worker");
    check(jitcast_ask(worker, NULL, &request) == wrong && jitcast_ask(worker, "", NULL) == wrong, "nothing asked");
    check(jitcast_ask(worker, not_utf8, &request) == wrong && request == NULL, "not UTF-8");
    check(!jitcast_request_is_ready(NULL) && jitcast_request_wait(NULL, 0) == wrong, "no request");
    check(jitcast_request_function(NULL, "f", NULL, NULL, &none) == wrong && none == NULL, "no request");
    jitcast_request_free(NULL);
    check(jitcast_enter_slowly(NULL, NULL) == wrong && jitcast_leave_slowly(NULL) == wrong, "no thread");
    check(jitcast_leave(worker) == JITCAST_STATUS_NOT_INSIDE, "left once too often");
#ifdef JITCAST_CHECKED
    check(jitcast_thread_leave(thread) == JITCAST_STATUS_NOT_INSIDE, "left once too often, inline");
#else
    must(jitcast_thread_leave(thread), "left once too often, unchecked");
    check(jitcast_take_token(worker).depth == 0, "nothing happens");
#endif
    check(jitcast_detach(NULL) == JITCAST_STATUS_OK, "no worker is none to detach");
    jitcast_handle_free(NULL);
    must(jitcast_enter(worker, NULL), "enter");
    check(jitcast_detach(worker) == JITCAST_STATUS_INSIDE, "not inside a guard");
    must(jitcast_thread_leave(thread), "leave");
    printf("refused\n");
}

/* `NAME SIGNATURE`, or `- ` for none; with a fallback. */
static void find(const char *line, jitcast_code fallback)
{
    char name[64];
    const char *signature = strchr(line, ' ');
    jitcast_status status;
    snprintf(name, sizeof name, "%.*s", (int)(signature - line), line);
    signature += 1;
    jitcast_handle_free(handle);
    handle = NULL;
    status = jitcast_function(worker, name, *signature == '-' ? NULL : signature, fallback, &handle);
    answer(status);
}

static void stub_call(const char *name)
{
    jitcast_code code;
    must(jitcast_stub(worker, name, &code), "stub");
    must(jitcast_thread_enter(thread, NULL), "enter");
    printf("result %" PRId64 "\n", ((function)code)(1));
    must(jitcast_thread_leave(thread), "leave");
}

static void obey(const char *line)
{
    const char *rest = strchr(line, ' ');
    rest = rest == NULL ? "" : rest + 1;
#define SAYS(word) (strncmp(line, word, sizeof(word) - 1) == 0)
    if (SAYS("find "))
        find(rest, NULL);
    else if (SAYS("find-or "))
        find(rest, (jitcast_code)fall_back);
    else if (SAYS("call "))
        inline_call(atoll(rest));
    else if (SAYS("exported "))
        exported_call(atoll(rest));
    else if (SAYS("ask "))
        ask(rest);
    else if (SAYS("take "))
        take(rest, "(i64) -> i64");
    else if (SAYS("stub "))
        stub_call(rest);
    else if (SAYS("enter"))
        answer(jitcast_thread_enter(thread, NULL));
    else if (SAYS("inside "))
        printf("result %" PRId64 " at %" PRIu64 "\n", call(atoll(rest)), jitcast_generation(worker));
    else if (SAYS("leave"))
        answer(jitcast_leave(worker));
    else if (SAYS("fenced"))
        printf("fenced %u\n", (unsigned)(thread->polls == 0));
    else if (SAYS("mixed"))
        mixed();
    else if (SAYS("jump"))
        jump_out();
    else if (SAYS("fork "))
        in_child(atoll(rest));
    else if (SAYS("await "))
        awaited = atoll(rest), printf("awaited\n");
    else if (SAYS("threads "))
        threads(atoi(rest));
    else if (SAYS("wait "))
        answer(jitcast_wait(worker, strtoull(rest, NULL, 10), 20000000));
    else if (SAYS("news "))
        answer(jitcast_wait(worker, strtoull(rest, NULL, 10), JITCAST_FOREVER));
    else if (SAYS("hang-up"))
        await_hang_up();
    else if (SAYS("loop"))
        event_loop();
    else if (SAYS("reconnect"))
        reconnect();
    else if (SAYS("stats"))
        statistics();
    else if (SAYS("without"))
        without();
    else if (SAYS("events"))
        events();
    else if (SAYS("walked"))
        printf("walked%s\n", walked);
    else if (SAYS("cut ")) {
        char name[8];
        jitcast_code code;
        must(jitcast_stub(worker, rest, &code), "stub");
        must(jitcast_symbolize(worker, (void *)(uintptr_t)code, name, sizeof name), "symbolize");
        printf("cut %s\n", name);
    } else if (SAYS("wrong"))
        wrong_arguments();
    else
        printf("what is `%s`?\n", line);
}

int main(int count, char **args)
{
    static char line[256];
    jitcast_status status;
    check(count == 4, "three arguments");
    status = attach(args[1], args[2], args[3]);
    if (status == JITCAST_STATUS_OK && strcmp(args[3], "late") != 0)
        must(jitcast_thread_of(worker, &thread), "thread");
    answer(status);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        obey(line);
        fflush(stdout);
    }
    must(jitcast_detach(worker), "detach");
    jitcast_handle_free(handle);
    return 0;
}
