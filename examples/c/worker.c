/* A worker in C: call the current version, whatever it is by now.
 *
 *     cc worker.c $(pkg-config --cflags --libs jitcast) && ./a.out /tmp/score.sock
 */

#include <inttypes.h>
#include <stdio.h>

#include <jitcast.h>

int main(int count, char **args)
{
    jitcast_worker *worker;
    jitcast_thread *thread;
    jitcast_handle *score;
    if (count != 2 || jitcast_attach_path(args[1], NULL, &worker) != JITCAST_STATUS_OK
        || jitcast_function(worker, "score", "(i64) -> i64", NULL, &score) != JITCAST_STATUS_OK
        || jitcast_thread_of(worker, &thread) != JITCAST_STATUS_OK) {
        fprintf(stderr, "%s\n", jitcast_last_error());
        return 1;
    }
    for (uint64_t seen = 0; jitcast_wait(worker, seen, UINT64_C(60000000000)) == JITCAST_STATUS_OK;) {
        if (jitcast_thread_enter(thread, NULL) != JITCAST_STATUS_OK) /* the poll: what is new is applied first */
            break;
        int64_t (*call)(int64_t) = (int64_t (*)(int64_t))jitcast_address(score);
        seen = jitcast_generation(worker);
        printf("score(21) = %" PRId64 " in generation %" PRIu64 "\n", call(21), seen);
        fflush(stdout);
        jitcast_thread_leave(thread);
    }
    jitcast_handle_free(score);
    return jitcast_detach(worker) == JITCAST_STATUS_OK ? 0 : 1;
}
