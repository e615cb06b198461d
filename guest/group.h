/* The control group of all that the agent starts: the host may freeze it, so that a fork is taken, and wakes, with no
 * user process running. */
#ifndef PRIMORDIA_GROUP_H
#define PRIMORDIA_GROUP_H

#include <stdbool.h>
#include <sys/types.h>

/* The root of the hierarchy (cgroup v2), mounted where no program sees it; -1 with a line in the log. */
int group_hierarchy(void);

/* Make the group below the given one. Without it the agent serves all but freeze. */
bool group_start(int parent);

/* fork(2), the child in the group from birth: a frozen group freezes it before its first instruction. */
pid_t group_fork(void);

/* Whether all user processes may run again: 0 or an errno. */
int group_thaw(void);

/* Freeze and thaw a group of nobody: the first time costs a fork 2 ms. */
void group_rehearse(void);

/* While all stand: let the warmed interpreter go on, if the file that it made says that nothing but its two threads that
 * wait would, and nobody else is in the group. 0 or an errno. `group_settle` ends it. */
int group_stir(void);
void group_settle(void);

#endif
