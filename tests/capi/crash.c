/* Calls a published function that crashes, with crash reports, or asks for them in a way that is refused. */

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <jitcast.h>

static void own(int signal)
{
    static const char said[] = "own handler\n";
    if (write(2, said, sizeof said - 1) > 0)
        _exit(50 + signal);
}

int main(int count, char **args)
{
    jitcast_options options = {.size = sizeof options, .label = "c", .crash_directory = args[2]};
    jitcast_worker *worker;
    jitcast_thread *thread;
    jitcast_handle *crash;
    jitcast_status status;
    if (count != 3)
        return 2;
    status = jitcast_attach_path(args[1], &options, &worker);
    printf("%d %s\n", status == JITCAST_STATUS_OK, strstr(jitcast_last_error(), "JITCAST_CRASH_REPORTS") ? "named" : "?");
    fflush(stdout);
    signal(SIGILL, own);
    options.flags = JITCAST_CRASH_REPORTS;
    if (jitcast_attach_path(args[1], &options, &worker) != JITCAST_STATUS_OK
        || jitcast_function(worker, "crash", "(i64) -> i64", NULL, &crash) != JITCAST_STATUS_OK
        || jitcast_thread_of(worker, &thread) != JITCAST_STATUS_OK
        || jitcast_thread_enter(thread, NULL) != JITCAST_STATUS_OK) {
        fprintf(stderr, "%s\n", jitcast_last_error());
        return 1;
    }
    return (int)((int64_t (*)(int64_t))jitcast_address(crash))(1);
}
