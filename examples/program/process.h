/* The process and the system around it: its three streams, and the signals that it gets. */

/* A stream that was closed before the start is opened, so that its use fails: the file that is
   opened next would stand in its place, and get what is printed. */
static int open_streams(void) {
    for (int fd = 0; fd < 3; fd++) {
        if (fcntl(fd, F_GETFD) != -1) continue;
        if (open("/dev/null", fd ? O_RDONLY : O_WRONLY) == fd) continue;
        fprintf(stderr, "dictlearn: /dev/null: cannot be opened: %s\n", strerror(errno));
        return 0;
    }
    return 1;
}

/* Ctrl-C, SIGTERM and SIGHUP are noted, and looked at where work can end in good order. While
   something must not be broken off in its middle they are held. */
static volatile sig_atomic_t stop_asked, stop_held;

static void on_signal(int number) {
    (void)number;
    stop_asked = 1;
}

/* Who writes to a pipe that nobody reads any more gets an error, and ends in good order. */
static void on_pipe(int number) {
    (void)number;
}

static void note_signals(void) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        struct sigaction a;
        if (sigaction(numbers[i], NULL, &a) != 0 || a.sa_handler == SIG_IGN)
            continue; /* as nohup wants it */
        memset(&a, 0, sizeof a);
        a.sa_handler = numbers[i] == SIGPIPE ? on_pipe : on_signal;
        sigaction(numbers[i], &a, NULL); /* without SA_RESTART: to wait for input ends, too */
    }
}

/* What goes on would be printed to nobody. */
static int output_failed(void) {
    return !stop_asked && ferror(stdout);
}

static int stopping(void *user) {
    (void)user;
    return (stop_asked && !stop_held) || output_failed();
}

/* Ends as a program that does not know SIGPIPE does, if that is why standard output failed:
   quietly, as `| head` wants it. Comes back where it is not, or where the caller has SIGPIPE
   ignored. */
static void end_if_unread(void) {
    struct pollfd out = {1, POLLOUT, 0};
    struct sigaction a;
    if (poll(&out, 1, 0) != 1 || !(out.revents & (POLLERR | POLLHUP))) return;
    if (sigaction(SIGPIPE, NULL, &a) != 0 || a.sa_handler != on_pipe) return;
    signal(SIGPIPE, SIG_DFL);
    raise(SIGPIPE);
}

/* What was printed is only done when it has gone out. */
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
