/* The guest's root: a shared read-only disk below, the scratch disk above, drives found by their serial. */
#ifndef PRIMORDIA_ROOTFS_H
#define PRIMORDIA_ROOTFS_H

#include "params.h"

/* What went wrong, for the host: the step's name. */
struct failure {
	int number;
	char step[256];
};

/* Name the step; always false. */
__attribute__((format(printf, 3, 4))) bool fail(struct failure *failure, int number, const char *format, ...);

/* Build the root below /newroot and go into it; all or nothing. Returns a descriptor of a folder on a tmpfs that only we
 * see, or -1. */
int rootfs_enter(const struct params *params, struct failure *failure);

/* The device of the drive with that serial, which may appear a moment after its driver; false when there is none. */
bool drive_find(const char *serial, char *device, size_t size);

/* Mount it, with nothing remembered of what it held before. */
bool drive_mount(const char *serial, const char *path, const char *type, unsigned long flags, const char *options,
                 struct failure *failure);

/* mkdir -p; false with errno. */
bool ensure_folder(const char *path);

/* `tree` is a detached copy of a mount of one file; put it over `path`. Says in `created` whether we made a file there. */
bool attach_file(int tree, const char *path, bool *created);

/* Boot: /proc, /sys and /dev. */
bool mount_kernel_filesystems(void);

#endif
