/* What the whole agent knows about itself. */
#ifndef PRIMORDIA_AGENT_H
#define PRIMORDIA_AGENT_H

#include <stdbool.h>
#include <stdint.h>

enum {
	STATE_CONFIGURED = 1,
	STATE_MAIN_RUNNING = 2,
	STATE_MAIN_ENDED = 4,
	STATE_SHUTTING_DOWN = 8,
	STATE_PREPARED = 16,
	STATE_FROZEN = 32,
};

struct agent {
	/* Prepared: root and scratch are mounted. Configured: it has an identity. Frozen: by the host, until the host thaws. */
	bool prepared, configured, frozen, shutting_down;
	/* Served by a test inside namespaces of a host: a folder instead of drives, and the host's clock stays. */
	const char *hosted_root;
};

extern struct agent agent;

uint32_t agent_state(void);

/* One line to the kernel's log, which is the console. */
__attribute__((format(printf, 1, 2))) void agent_log(const char *format, ...);

#endif
