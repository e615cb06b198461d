/* Users and groups of the guest's root, read from its /etc/passwd and /etc/group without the C library's NSS, which a
 * static program cannot load and which would run code of the image. */
#ifndef PRIMORDIA_USER_H
#define PRIMORDIA_USER_H

#include <sys/types.h>

enum { GROUPS_MAX = 64 };

struct user {
	uid_t uid;
	gid_t gid;
	char home[256];
	gid_t groups[GROUPS_MAX];
	int group_count;
};

/* Resolve `name`, `uid`, or either with `:group` (a name or gid); empty is root. A number needs no entry.
 * Returns 0, ENOENT when a name is unknown, or EINVAL. `passwd` and `group` are the files' paths. */
int user_resolve(const char *wanted, const char *passwd, const char *group, struct user *user);

#endif
