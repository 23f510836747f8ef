/* The process and the system around it: how its threads wait, its streams, its signals, its clock.
   */

/* OpenMP's threads spin while they wait for each other. On a machine that others use, too, that
   makes a run 6 to 22 times slower (two cores, load 2 to 9: training with d 128, F 1024), so the
   program lets them sleep, unless the user has chosen. GCC's libgomp reads the environment before
   main, so the program must start itself again; clang's libomp reads it at the first parallel
   loop. Costs a millisecond. */
static void let_threads_sleep(char **argv) {
#ifdef _OPENMP
    char self[4096];
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT") || getenv("KMP_BLOCKTIME")) return;
    if (setenv("OMP_WAIT_POLICY", "passive", 0) != 0) return;
#ifndef __clang__
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0) return; /* no /proc: the threads spin */
    self[n] = 0;
    execv(self, argv); /* comes back only if it fails, which does no harm */
#endif
    (void)self;
#endif
    (void)argv;
}

/* Opens a stream that was closed before the start so that its use fails. Otherwise the next file
   that is opened would take its number, and receive what is printed. */
static int open_streams(void) {
    for (int fd = 0; fd < 3; fd++) {
        if (fcntl(fd, F_GETFD) != -1) continue;
        if (open("/dev/null", fd ? O_RDONLY : O_WRONLY) == fd) continue;
        fprintf(stderr, "dictlearn: /dev/null: cannot be opened: %s\n", strerror(errno));
        return 0;
    }
    return 1;
}

/* Ctrl-C, SIGTERM and SIGHUP only set stop_asked, to the number of the first of them; the work ends
   at the next place where that is safe. While stop_held is set they wait. */
static volatile sig_atomic_t stop_asked, stop_held;
/* Of several ranks, which must stop at the same place: what they have agreed on. -1: alone. */
static int stop_agreed = -1;

static void on_signal(int number) {
    if (!stop_asked) stop_asked = number;
}

/* The signal that stops the work; 0: none. */
static int stop_signal(void) {
    return stop_agreed < 0 ? (int)stop_asked : stop_agreed;
}

/* The exit status of a command that a signal has stopped: what a shell reports for a process that
   the signal has killed, so that a loop of runs ends with Ctrl-C. */
static int stopped_status(void) {
    return stop_signal() ? 128 + stop_signal() : 1;
}

/* A write to a pipe that nobody reads, or beyond the limit of a file's size (ulimit -f), fails with
   an error instead of killing the process, which would leave its temporary files. */
static void on_failed_write(int number) {
    (void)number;
}

/* Installs the handlers, except for signals that the caller ignores. */
static void note_signals(void) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGXFSZ};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        struct sigaction a;
        if (sigaction(numbers[i], NULL, &a) != 0 || a.sa_handler == SIG_IGN)
            continue; /* ignored by the caller, as under nohup: leave it so */
        memset(&a, 0, sizeof a);
        a.sa_handler = numbers[i] == SIGPIPE || numbers[i] == SIGXFSZ ? on_failed_write : on_signal;
        sigaction(numbers[i], &a, NULL); /* without SA_RESTART: a read that waits ends, too */
    }
}

/* Standard output failed, so further results would be lost. */
static int output_failed(void) {
    return !stop_signal() && ferror(stdout);
}

/* Asked between pieces of work, also by the library and the model runner. */
static int stopping(void *user) {
    (void)user;
    return (stop_signal() && !stop_held) || (stop_agreed < 0 && output_failed());
}

/* If standard output failed because nobody reads the pipe any more, ends the process by SIGPIPE:
   quietly, as `| head` expects. Returns otherwise, or if the caller ignores SIGPIPE. */
static void end_if_unread(void) {
    struct pollfd out = {1, POLLOUT, 0};
    struct sigaction a;
    if (poll(&out, 1, 0) != 1 || !(out.revents & (POLLERR | POLLHUP))) return;
    if (sigaction(SIGPIPE, NULL, &a) != 0 || a.sa_handler != on_failed_write) return;
    signal(SIGPIPE, SIG_DFL);
    raise(SIGPIPE);
}

/* The exit status. Output counts as written only when it has left the process. */
static int end_output(int status) {
    int told = status && !output_failed(), bad = ferror(stdout) != 0;
    errno = 0;
    bad |= fflush(stdout) != 0;
    int why = errno ? errno : EIO;
    if (bad) end_if_unread();
    if (!bad || told) return status;
    fprintf(stderr, "dictlearn: standard output: cannot be written: %s\n", strerror(why));
    return 1;
}

/* Prints the error of a command that failed; its exit status. */
static int fail(dlrn_context *ctx) {
    if (output_failed()) {
        end_if_unread();
        if (strncmp(dlrn_error(ctx), "standard output: ", 17)) return 1; /* end_output tells it */
    }
    int stopped = stop_signal() && !stop_held;
    fprintf(stderr, "dictlearn: %s\n",
            stopped ? "stopped before it was done: nothing was saved" : dlrn_error(ctx));
    clearerr(stdout); /* told */
    return stopped ? stopped_status() : 1;
}

/* Seconds since some moment. Never goes back, whatever the clock does. */
static double seconds(void) {
    static double last;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    double now = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    return last = now > last ? now : last;
}

/* A rate; 0 if the time is too short to tell. */
static double per_second(int64_t count, double time) {
    return time > 1e-6 ? (double)count / time : 0;
}
