/* Freezing (kernel documentation, cgroup-v2: `cgroup.freeze`): the kernel stops each process at the border of the kernel,
 * as by a stop that the process cannot notice, and says in `cgroup.events` when all stand. */
#define _GNU_SOURCE
#include "group.h"

#include "agent.h"
#include "calls.h"
#include "loop.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { STANDSTILL_MS = 5000 };
#define INTERPRETER_ALONE "/run/primordia/alone"

static int folder = -1, control = -1, spare = -1; /* the last: of a group in which nobody is */
static struct source events = {.fd = -1};

/* Calls of freeze that wait until all stand. */
struct waiter {
	struct stream stream;
	struct timer timer;
	struct waiter *next;
};

static struct waiter *waiters;

int group_hierarchy(void)
{
	int context = fsopen("cgroup2", FSOPEN_CLOEXEC), root = -1;
	if (context >= 0 && fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
		root = fsmount(context, FSMOUNT_CLOEXEC, 0);
	if (root < 0)
		agent_log("no control groups: %s", strerror(errno));
	if (context >= 0)
		close(context);
	return root;
}

static bool all_stand(void)
{
	char text[256];
	ssize_t size = pread(events.fd, text, sizeof text - 1, 0);
	text[size < 0 ? 0 : size] = 0;
	return strstr(text, "frozen 1") != NULL;
}

static void tell_waiters(void)
{
	if (!all_stand())
		return;
	for (struct waiter *waiter = waiters; waiter; waiter = waiter->next) {
		timer_clear(&waiter->timer);
		stream_close(&waiter->stream);
	}
}

static void on_event(struct source *source, uint32_t events_seen)
{
	(void)source;
	(void)events_seen;
	tell_waiters();
}

bool group_start(int parent)
{
	if (parent < 0)
		return false;
	fcntl(parent, F_SETFD, FD_CLOEXEC);
	if (mkdirat(parent, "user", 0755) != 0 && errno != EEXIST) {
		agent_log("cannot make the control group: %s", strerror(errno));
		return false;
	}
	folder = openat(parent, "user", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	control = openat(folder, "cgroup.freeze", O_RDWR | O_CLOEXEC);
	if (mkdirat(parent, "spare", 0755) == 0 || errno == EEXIST)
		spare = openat(parent, "spare/cgroup.freeze", O_RDWR | O_CLOEXEC);
	int changes = openat(folder, "cgroup.events", O_RDONLY | O_CLOEXEC);
	return control >= 0 && changes >= 0 && source_add(&events, changes, on_event);
}

pid_t group_fork(void)
{
	struct clone_args arguments = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)folder};
	return folder < 0 ? fork() : (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
}

void group_rehearse(void)
{
	if (pwrite(spare, "1", 1, 0) != 1 || pwrite(spare, "0", 1, 0) != 1)
		agent_log("a thaw cannot be rehearsed: %s", strerror(errno));
}

/* Lines of one of the group's files, or -1. */
static int lines_of(const char *name)
{
	char text[256];
	int fd = openat(folder, name, O_RDONLY | O_CLOEXEC), lines = 0;
	ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text);
	if (fd >= 0)
		close(fd);
	for (ssize_t i = 0; i < size; i++)
		lines += text[i] == '\n';
	return size < 0 ? -1 : lines;
}

static bool has_no_groups_below(void)
{
	char text[256];
	int fd = openat(folder, "cgroup.stat", O_RDONLY | O_CLOEXEC);
	ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	text[size < 0 ? 0 : size] = 0;
	return strncmp(text, "nr_descendants 0\n", 17) == 0;
}

static int set_frozen(char digit)
{
	char found = 0;
	if (control < 0)
		return ENOSYS;
	if (pwrite(control, &digit, 1, 0) != 1 || pread(control, &found, 1, 0) != 1)
		return errno;
	return found == digit ? 0 : EIO;
}

int group_stir(void)
{
	struct stat alone;
	if (!agent.frozen || lstat(INTERPRETER_ALONE, &alone) != 0 || !S_ISREG(alone.st_mode))
		return ENOENT;
	if (lines_of("cgroup.procs") != 1 || lines_of("cgroup.threads") != 2 || !has_no_groups_below())
		return EBUSY;
	return set_frozen('0');
}

void group_settle(void)
{
	if (agent.frozen && set_frozen('1') != 0)
		agent_log("the user processes cannot be frozen again: %s", strerror(errno));
}

int group_thaw(void)
{
	if (!agent.frozen)
		return 0;
	int error = set_frozen('0');
	if (error)
		return error;
	agent.frozen = false;
	for (struct waiter *waiter = waiters; waiter; waiter = waiter->next)
		if (!waiter->stream.closing) {
			answer_error(&waiter->stream.answer, ECANCELED, "thawed before all processes stood");
			stream_refuse(&waiter->stream);
		}
	return 0;
}

static void on_late(struct timer *timer)
{
	struct waiter *waiter = OWNER(timer, struct waiter, timer);
	answer_error(&waiter->stream.answer, EBUSY, "a process does not stand after %d ms", STANDSTILL_MS);
	stream_refuse(&waiter->stream);
	group_thaw();
}

static void waiter_gone(struct stream *stream, bool by_host)
{
	struct waiter *gone = OWNER(stream, struct waiter, stream);
	(void)by_host;
	timer_clear(&gone->timer);
	for (struct waiter **at = &waiters; *at; at = &(*at)->next)
		if (*at == gone) {
			*at = gone->next;
			break;
		}
	loop_free(gone);
}

static const struct stream_ops waiter_ops = {.on_gone = waiter_gone};

void freeze_open(uint32_t id, const struct params *params)
{
	(void)params;
	struct waiter *waiter = calloc(1, sizeof *waiter);
	int error = waiter ? set_frozen('1') : ENOMEM;
	if (error) {
		free(waiter);
		call_refused(id, error, "cannot freeze the user processes");
		return;
	}
	agent.frozen = true;
	stream_accept(&waiter->stream, id, &waiter_ops);
	waiter->next = waiters;
	waiters = waiter;
	timer_set(&waiter->timer, STANDSTILL_MS, on_late);
	tell_waiters();
}

void thaw_open(uint32_t id, const struct params *params)
{
	(void)params;
	int error = group_thaw();
	if (error)
		call_refused(id, error, "cannot thaw the user processes");
	else
		call_done(id, NULL);
}
