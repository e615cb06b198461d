#define _GNU_SOURCE
#include "spawn.h"

#include "agent.h"
#include "group.h"
#include "user.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	REPORT_FD = 3,
	ABANDON_GRACE_MS = 2000,
	LOWEST_PRIORITY = 19,
	OPEN_FILES_SOFT = 65536,
	OPEN_FILES_HARD = 1048576,
};

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

struct report {
	int error;
	char what[256];
};

static struct source signals = {.fd = -1};
static struct child *children;

/* ---- in the child ---- */

static _Noreturn void fail(int error, const char *what)
{
	struct report report = {.error = error};
	snprintf(report.what, sizeof report.what, "%s", what);
	ssize_t ignored = write(REPORT_FD, &report, sizeof report);
	(void)ignored;
	_exit(127);
}

void job_refuse(int error, const char *what)
{
	fail(error, what);
}

void job_started(void)
{
	close(REPORT_FD);
}

static void set_default(const char *key, const char *value)
{
	if (setenv(key, value, 0) != 0)
		fail(errno, key);
}

static void set_environment(char **env, const struct user *user, bool tty)
{
	clearenv();
	for (; *env; env++)
		if (strchr(*env, '=') && putenv(*env) != 0)
			fail(errno, *env);
	set_default("PATH", DEFAULT_PATH);
	set_default("HOME", user->home);
	if (tty)
		set_default("TERM", "xterm");
}

static void become(const struct user *user)
{
	if (setgroups(user->group_count, user->groups) != 0 || setresgid(user->gid, user->gid, user->gid) != 0 ||
	    setresuid(user->uid, user->uid, user->uid) != 0)
		fail(errno, "cannot change the user");
}

static void reset_process(bool tty)
{
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setpriority(PRIO_PROCESS, 0, 0); /* the agent's is higher */
	setsid();
	if (tty && ioctl(0, TIOCSCTTY, 0) != 0)
		fail(errno, "cannot take the terminal");
}

static void raise_limits(void)
{
	struct rlimit files = {OPEN_FILES_SOFT, OPEN_FILES_HARD};
	if (setrlimit(RLIMIT_NOFILE, &files) == 0 || getrlimit(RLIMIT_NOFILE, &files) != 0)
		return;
	files.rlim_cur = files.rlim_max < OPEN_FILES_SOFT ? files.rlim_max : OPEN_FILES_SOFT;
	setrlimit(RLIMIT_NOFILE, &files);
}

/* Programs of that user may then open /dev/stdout and its kin. Never /dev/null, which is everybody's. */
static void give_stdio(const struct user *user, bool tty)
{
	struct stat status;
	for (int fd = 0; fd < 3; fd++)
		if (fstat(fd, &status) == 0 && (tty || S_ISFIFO(status.st_mode)) && fchown(fd, user->uid, -1) != 0)
			fail(errno, "cannot own the standard streams");
}

static _Noreturn void run_program(const struct spawn *spawn)
{
	struct user user;
	int error = user_resolve(spawn->user, "/etc/passwd", "/etc/group", &user);
	if (error)
		fail(error, spawn->user);
	set_environment(spawn->env, &user, spawn->tty);
	/* so that a container engine inside makes its groups below ours, where freezing reaches them */
	unshare(CLONE_NEWCGROUP);
	raise_limits();
	give_stdio(&user, spawn->tty);
	if (spawn->give)
		spawn->give(user.uid, user.gid);
	become(&user);
	if (chdir(*spawn->cwd ? spawn->cwd : "/") != 0)
		fail(errno, spawn->cwd);
	if (spawn->own) {
		execve("/proc/self/exe", spawn->argv, environ);
		_exit(0); /* without /proc, as in tests on a host, there is no more to rehearse */
	}
	execvpe(spawn->argv[0], spawn->argv, environ);
	fail(errno, spawn->argv[0]);
}

/* Bring the four descriptors to 0..3 whatever they were, and close all others. */
static void place_descriptors(const struct spawn *spawn, int report)
{
	int wanted[4] = {spawn->stdio[0], spawn->stdio[1], spawn->stdio[2], report};
	for (int i = 0; i < 4; i++) {
		wanted[i] = fcntl(wanted[i], F_DUPFD, 16);
		if (wanted[i] < 0)
			_exit(127);
	}
	for (int i = 0; i < 4; i++)
		dup2(wanted[i], i);
	fcntl(REPORT_FD, F_SETFD, FD_CLOEXEC);
	close_range(REPORT_FD + 1, ~0u, 0);
}

static _Noreturn void run_child(const struct spawn *spawn, int report)
{
	place_descriptors(spawn, report);
	reset_process(spawn->tty);
	if (!spawn->job)
		run_program(spawn);
	_exit(spawn->job(spawn->job_argument) & 0xff);
}

/* ---- in the agent ---- */

static void remove_child(struct child *child)
{
	for (struct child **at = &children; *at; at = &(*at)->next)
		if (*at == child) {
			*at = child->next;
			return;
		}
}

static void on_report(struct source *source, uint32_t events)
{
	(void)events;
	struct child *child = OWNER(source, struct child, report);
	struct report report = {0};
	ssize_t count = read(source->fd, &report, sizeof report);
	if (count < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	source_close(source);
	if (count == 0) {
		child->on_started(child, 0, "");
		return;
	}
	remove_child(child); /* reaped as a stranger */
	child->pid = 0;
	report.what[sizeof report.what - 1] = 0;
	child->on_started(child, report.error ? report.error : EIO, report.what);
}

int child_spawn(struct child *child, const struct spawn *spawn)
{
	int report[2];
	if (!make_pipe(report, 0))
		return errno;
	pid_t pid = spawn->own ? fork() : group_fork();
	if (pid == 0)
		run_child(spawn, report[1]);
	int error = pid < 0 ? errno : 0;
	close(report[1]);
	if (error || !source_add(&child->report, report[0], on_report)) {
		close(report[0]);
		return error ? error : EIO;
	}
	child->pid = pid;
	child->next = children;
	children = child;
	return 0;
}

int child_signal(struct child *child, int number)
{
	if (child->pid <= 0)
		return ESRCH;
	if (kill(-child->pid, number) == 0)
		return 0;
	/* the group exists only once the child has made its session */
	return kill(child->pid, number) == 0 ? 0 : errno;
}

void child_to_background(const struct child *child)
{
	if (child->pid > 0)
		setpriority(PRIO_PGRP, child->pid, LOWEST_PRIORITY);
}

struct abandoned {
	struct timer timer;
	struct child child;
};

static void abandoned_started(struct child *child, int error, const char *what)
{
	(void)what;
	struct abandoned *abandoned = OWNER(child, struct abandoned, child);
	if (error) {
		timer_clear(&abandoned->timer);
		loop_free(abandoned);
	}
}

static void abandoned_exit(struct child *child, int wait_status)
{
	(void)wait_status;
	struct abandoned *abandoned = OWNER(child, struct abandoned, child);
	kill(-child->pid, SIGKILL); /* whoever of the group ignored SIGHUP; the pid is not reused while it exists */
	timer_clear(&abandoned->timer);
	source_close(&child->report);
	loop_free(abandoned);
}

static void abandoned_late(struct timer *timer)
{
	child_signal(&OWNER(timer, struct abandoned, timer)->child, SIGKILL);
}

void child_abandon(struct child *child)
{
	if (child->pid <= 0)
		return;
	struct abandoned *abandoned = calloc(1, sizeof *abandoned);
	child_signal(child, abandoned ? SIGHUP : SIGKILL);
	child_signal(child, SIGCONT);
	remove_child(child);
	source_close(&child->report);
	if (abandoned) {
		abandoned->child.pid = child->pid;
		abandoned->child.report.fd = -1;
		abandoned->child.on_started = abandoned_started;
		abandoned->child.on_exit = abandoned_exit;
		abandoned->child.next = children;
		children = &abandoned->child;
		timer_set(&abandoned->timer, ABANDON_GRACE_MS, abandoned_late);
	}
	child->pid = 0;
}

static void child_ended(pid_t pid, int wait_status)
{
	for (struct child *child = children; child; child = child->next)
		if (child->pid == pid) {
			/* A program may end before its start was read: the report says which of the two it was. */
			if (child->report.fd >= 0)
				on_report(&child->report, EPOLLIN);
			if (child->pid <= 0)
				return;
			remove_child(child);
			child->on_exit(child, wait_status);
			return;
		}
}

static void on_signal(struct source *source, uint32_t events)
{
	(void)events;
	struct signalfd_siginfo info;
	while (read(source->fd, &info, sizeof info) > 0)
		;
	int status;
	pid_t pid;
	/* WNOWAIT first: the pid, and so the group's number, stays taken while the owner still signals the group */
	siginfo_t ended;
	while (ended.si_pid = 0, waitid(P_ALL, 0, &ended, WEXITED | WNOHANG | WNOWAIT) == 0 && ended.si_pid > 0) {
		pid = ended.si_pid;
		status = ended.si_code == CLD_EXITED ? W_EXITCODE(ended.si_status, 0) : ended.si_status;
		child_ended(pid, status);
		waitpid(pid, NULL, 0);
	}
}

bool children_start(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	signal(SIGPIPE, SIG_IGN);
	if (sigprocmask(SIG_BLOCK, &set, NULL) != 0)
		return false;
	int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd >= 0 && source_add(&signals, fd, on_signal);
}

bool make_pipe(int ends[2], int ours)
{
	if (pipe2(ends, O_CLOEXEC) != 0)
		return false;
	fcntl(ends[ours], F_SETFL, O_NONBLOCK);
	return true;
}

bool make_terminal(int ends[2], int rows, int columns)
{
	struct winsize size = {.ws_row = rows, .ws_col = columns};
	int unlock = 0;
	ends[1] = -1;
	ends[0] = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	if (ends[0] < 0)
		return false;
	if (ioctl(ends[0], TIOCSPTLCK, &unlock) == 0 && ioctl(ends[0], TIOCSWINSZ, &size) == 0)
		ends[1] = ioctl(ends[0], TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (ends[1] >= 0)
		return true;
	int error = errno;
	close(ends[0]);
	errno = error;
	return false;
}

void close_all(const int *descriptors, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (descriptors[i] >= 0)
			close(descriptors[i]);
}
