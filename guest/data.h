/* Data drives: mounted beside the root, made larger, stilled for a moment. */
#ifndef PRIMORDIA_DATA_H
#define PRIMORDIA_DATA_H

#include "params.h"
#include "rootfs.h"

#include <sys/types.h>

/* Mount the drives of the `mount` parameters; those that are mounted so already stay. */
bool data_mounts(const struct params *params, struct failure *failure);

/* Give the folders of file systems that are new (root's, with nothing in them) to that user: its program could write nothing
 * there. What somebody has used stays as it is. */
void data_give(uid_t uid, gid_t gid);

enum { DATA_MAX = 32 };

/* Open the folder of each, for syncfs: at most DATA_MAX. Returns how many, or -errno, and then none is open. */
int data_open(int *fds);

/* Let those go on that are stilled. May block. */
void data_thaw(void);

/* Unmount them, or make them read-only when they are busy. */
void data_leave(void);

#endif
