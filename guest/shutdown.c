/* The end of a guest: SIGTERM to the main program, after its grace SIGKILL to all, then no dirty page is left behind. */
#define _GNU_SOURCE
#include "agent.h"
#include "calls.h"
#include "data.h"
#include "loop.h"
#include "rootfs.h"
#include "spawn.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	LOOK_MS = 20,
	GRACE_MAX_MS = 3600 * 1000,
	DEATH_MS = 3000, /* for processes stuck in the kernel */
};

static struct timer timer;
static int64_t deadline_ms;

/* The agent is process 1 of its namespace: -1 is everybody else in it. */
static void kill_everybody(void)
{
	kill(-1, SIGKILL);
	for (int waited = 0; waited < DEATH_MS; waited += 10) {
		pid_t pid;
		while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
			;
		if (pid < 0 && errno == ECHILD)
			return;
		usleep(10000);
	}
}

static _Noreturn void power_off(void)
{
	data_thaw(); /* who waits to write could not be killed */
	kill_everybody();
	sync();
	data_leave();
	if (agent.hosted_root)
		_exit(0);
	sync();
	reboot(RB_POWER_OFF);
	reboot(RB_AUTOBOOT); /* where there is no power switch: the VMM ends at a reset */
	for (;;)
		pause();
}

static void on_time(struct timer *same)
{
	static bool told; /* who waits for the program's end is told first: one more turn */
	if (program_running() && now_ms() < deadline_ms)
		timer_set(same, LOOK_MS, on_time);
	else if (!told && (told = true))
		timer_set(same, LOOK_MS, on_time);
	else
		power_off();
}

void shutdown_open(uint32_t id, const struct params *params)
{
	agent.shutting_down = true;
	/* Frozen processes could not heed SIGTERM, and must not run just for that: a fork's have no identity yet. */
	deadline_ms = now_ms() + (agent.frozen ? 0 : params_number(params, "grace_ms", 0, GRACE_MAX_MS, 10000));
	program_kill(SIGTERM);
	program_kill(SIGCONT);
	call_done(id, NULL);
	timer_set(&timer, LOOK_MS, on_time); /* the answer leaves first */
}
