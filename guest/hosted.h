#ifndef PRIMORDIA_HOSTED_H
#define PRIMORDIA_HOSTED_H

#include <stdbool.h>

/* `agent serve LISTENER ROOT GROUP`: the agent for tests, without a microVM. It must be process 1 of new mount, process,
 * network and host name namespaces, for it mounts, signals and reaps as if all were its own; `ROOT` stands for the drives,
 * the descriptor `GROUP` of a control group (v2) for the hierarchy's root. */
bool hosted_start(int listener, const char *root);

#endif
