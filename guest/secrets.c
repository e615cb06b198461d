/* What is removed is overwritten first: the mount may have been moved, and a program may still have the file open. */
#define _GNU_SOURCE
#include "secrets.h"

#include "etc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

struct secret {
	char name[32]; /* on the tmpfs */
	char *path;
	bool created; /* the file below the mount is ours */
	struct secret *next;
};

static int folder = -1;
static int number;
static struct secret *secrets; /* the newest first */

void secrets_start(int own)
{
	folder = own;
}

/* An overwritten file of size 0 is what remains for whoever has it open. */
static int wipe(const char *name)
{
	static const char zeros[4096];
	struct stat status;
	int fd = openat(folder, name, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &status) != 0)
		return errno;
	int error = 0;
	for (off_t at = 0; !error && at < status.st_size; at += sizeof zeros)
		if (pwrite(fd, zeros, sizeof zeros, at) != sizeof zeros)
			error = EIO;
	if (ftruncate(fd, 0) != 0 || fstat(fd, &status) != 0 || status.st_size != 0)
		error = errno ? errno : EIO;
	close(fd);
	return error;
}

static bool remove_secret(struct secret *secret, struct failure *failure)
{
	int error = wipe(secret->name);
	if (error)
		return fail(failure, error, "remove the secret %.200s", secret->path);
	unlinkat(folder, secret->name, 0);
	if (umount2(secret->path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0 && secret->created)
		unlink(secret->path);
	return true;
}

static bool remove_all(struct failure *failure)
{
	while (secrets) {
		struct secret *secret = secrets;
		if (!remove_secret(secret, failure))
			return false;
		secrets = secret->next;
		free(secret->path);
		free(secret);
	}
	return true;
}

static int write_content(const char *name, const uint8_t *content, long size, mode_t mode)
{
	int fd = openat(folder, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return errno;
	int error = write(fd, content, size) == size && fchmod(fd, mode) == 0 ? 0 : errno;
	close(fd);
	return error;
}

static int bind_to_place(struct secret *secret)
{
	int tree = open_tree(folder, secret->name, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (tree < 0)
		return errno;
	int error = attach_file(tree, secret->path, &secret->created) ? 0 : errno;
	close(tree);
	return error;
}

static struct secret *secret_new(const char *path)
{
	struct secret *secret = calloc(1, sizeof *secret);
	if (secret == NULL || (secret->path = strdup(path)) == NULL) {
		free(secret);
		return NULL;
	}
	snprintf(secret->name, sizeof secret->name, "%d", number++);
	secret->next = secrets;
	secrets = secret;
	return secret;
}

/* The file is in the list before it is anywhere else, so that whatever fails, the next removal finds it. */
static int place(const char *path, const uint8_t *content, long size, mode_t mode)
{
	struct secret *secret = secret_new(path);
	if (secret == NULL)
		return ENOMEM;
	int error = write_content(secret->name, content, size, mode);
	if (!error)
		error = bind_to_place(secret);
	return error ? error : etc_compare(path, content, size);
}

/* OCTAL MODE:HEX:PATH */
static bool place_parameter(const char *value, struct failure *failure)
{
	const char *hex = strchr(value, ':'), *path = hex ? strchr(hex + 1, ':') : NULL;
	if (path == NULL || path[1] != '/')
		return fail(failure, EINVAL, "secret %.200s", path ? path + 1 : "without a path");
	size_t digits = path - hex - 1;
	uint8_t *content = malloc(digits / 2 + 1);
	long size = content ? hex_decode(hex + 1, digits, content) : -1;
	int error = size < 0 ? EINVAL : place(path + 1, content, size, strtol(value, NULL, 8) & 07777);
	if (content)
		explicit_bzero(content, digits / 2);
	free(content);
	return error == 0 || fail(failure, error, "secret %.200s", path + 1);
}

bool secrets_replace(const struct params *params, struct failure *failure)
{
	if (!params_number(params, "inherit_secrets", 0, 1, 0) && !remove_all(failure))
		return false;
	for (const char *value = NULL; (value = params_next(params, "secret", value));)
		if (!place_parameter(value, failure))
			return false;
	return true;
}
