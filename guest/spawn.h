/* Children: programs of the guest's root, and jobs (our own functions that may block) in forked processes. */
#ifndef PRIMORDIA_SPAWN_H
#define PRIMORDIA_SPAWN_H

#include "loop.h"
#include "params.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Embedded in its owner. `on_started` comes once the program runs or has failed to (then no on_exit follows). */
struct child {
	pid_t pid;
	void (*on_started)(struct child *child, int error, const char *what);
	void (*on_exit)(struct child *child, int wait_status);
	struct source report;
	struct child *next;
};

struct spawn {
	/* Either a program... */
	char **argv, **env;
	const char *cwd, *user;
	/* ...or a job, which calls job_started or job_refuse first. Its result (an errno) is the exit code, its complaint
	 * goes to descriptor 2. */
	int (*job)(const char *argument);
	const char *job_argument;
	/* Descriptors for 0, 1 and 2; with a tty the slave, three times. */
	int stdio[3];
	bool tty;
	/* The program is the agent itself, and no user process. */
	bool own;
	/* Called for the program's user before it becomes that one, when not NULL. */
	void (*give)(uid_t uid, gid_t gid);
};

/* For jobs: the beginning succeeded, or it failed and the process ends. */
void job_started(void);
_Noreturn void job_refuse(int error, const char *what);

/* Serve SIGCHLD; to be called once. */
bool children_start(void);

/* Fork. Returns 0 or an errno; on_started is called later, never from within. */
int child_spawn(struct child *child, const struct spawn *spawn);

/* Signal the whole process group, if the child still runs. */
int child_signal(struct child *child, int number);

/* Give its process group the lowest priority (nice 19): it runs when nobody else wants to. */
void child_to_background(const struct child *child);

/* Hear no more of it; it is still reaped. Kills the group with SIGHUP now and SIGKILL a little later. */
void child_abandon(struct child *child);

/* A pipe whose end `ours` (0 read, 1 write) does not block. */
bool make_pipe(int ends[2], int ours);

/* A pseudo-terminal of this size: ends[0] the master, not blocking, ends[1] the slave. */
bool make_terminal(int ends[2], int rows, int columns);

void close_all(const int *descriptors, size_t count);

#endif
