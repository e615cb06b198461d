/* Primordia's guest agent: process 1 of a microVM, and under the name `kbl` the guest's command line.
 *
 * It owns the machine inside: it boots it, makes it who the host says (identify), runs its main program, and serves
 * the host's streams over one byte channel. Invariants: one thread; nothing blocks on a peer (what may block runs in
 * a forked job); no buffer grows beyond a stream's window; it never ends while the machine lives. */
#define _GNU_SOURCE
#include "agent.h"

#include "boot.h"
#include "calls.h"
#include "channel.h"
#include "group.h"
#include "hosted.h"
#include "kbl.h"
#include "loop.h"
#include "spawn.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

struct agent agent;

uint32_t agent_state(void)
{
	return (agent.configured ? STATE_CONFIGURED : 0) | (program_running() ? STATE_MAIN_RUNNING : 0) |
	       (program_ended() ? STATE_MAIN_ENDED : 0) | (agent.shutting_down ? STATE_SHUTTING_DOWN : 0) |
	       (agent.prepared ? STATE_PREPARED : 0) | (agent.frozen ? STATE_FROZEN : 0);
}

void agent_log(const char *format, ...)
{
	char line[512] = "primordia-agent: ";
	size_t start = strlen(line);
	va_list values;
	va_start(values, format);
	int length = vsnprintf(line + start, sizeof line - start - 1, format, values);
	va_end(values);
	size_t size = start + (length < 0 ? 0 : (size_t)length < sizeof line - start - 1 ? (size_t)length : sizeof line - start - 2);
	line[size++] = '\n';
	ssize_t ignored = write(2, line, size);
	(void)ignored;
}

static _Noreturn void serve(void)
{
	for (;;) {
		/* in this order: what the main program wrote makes streams ready to send */
		bool busy = program_pump();
		busy |= channel_pump();
		loop_turn(busy);
	}
}

/* The host waits for the agent's answers. Processes that it lets go must not go first: under emulation that is milliseconds. */
enum { HIGHEST_PRIORITY = -20 };

static bool start(void)
{
	umask(022);
	return loop_start() && children_start();
}

int main(int argc, char **argv)
{
	const char *name = strrchr(argv[0], '/');
	name = name ? name + 1 : argv[0];
	if (strcmp(name, "kbl") == 0 || getpid() != 1)
		return kbl_main(argc, argv);
	if (argc == 5 && strcmp(argv[1], "serve") == 0) {
		if (!start() || !group_start(atoi(argv[4])) || !hosted_start(atoi(argv[2]), argv[3]))
			return 1;
		serve();
	}
	int port = boot();
	setpriority(PRIO_PROCESS, 0, HIGHEST_PRIORITY);
	if (start()) {
		group_start(group_hierarchy());
		channel_start(port);
	}
	serve();
}
