#define _GNU_SOURCE
#include "etc.h"

#include "agent.h"
#include "bytes.h"
#include "relay.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OVERWRITE_MAX = 4096, RESOLVER_MAX = 2047 };

/* The name and address of the guest itself, kept for when the hosts are replaced. */
static char own_name[256], own_address[64];

static int write_new(const char *path, const char *content, size_t size, mode_t mode)
{
	unlink(path);
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
	if (fd < 0)
		return errno;
	int error = write(fd, content, size) == (ssize_t)size && fchmod(fd, mode) == 0 ? 0 : errno;
	close(fd);
	return error;
}

int etc_compare(const char *path, const void *content, size_t size)
{
	char *found = malloc(size + 1);
	int fd = found ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	int error = fd < 0 ? errno : 0;
	if (!error && (read(fd, found, size + 1) != (ssize_t)size || memcmp(found, content, size) != 0))
		error = EIO;
	if (fd >= 0)
		close(fd);
	if (found)
		explicit_bzero(found, size); /* it may be a secret */
	free(found);
	return error;
}

/* The files that were written over, which stay open: a fork inherits them, and to open the first costs it some milliseconds. */
static struct kept {
	const char *path;
	int fd;
	dev_t device;
	ino_t inode;
} kept_files[] = {{"/etc/machine-id", -1, 0, 0}, {"/etc/hostname", -1, 0, 0}, {"/etc/hosts", -1, 0, 0}, {"/etc/resolv.conf", -1, 0, 0}};

/* The open file that has the path, and its status; opened again when another has it by now. NULL when there is none. */
static struct kept *kept_open(const char *path, struct stat *status)
{
	struct kept *kept = kept_files;
	while (kept < kept_files + sizeof kept_files / sizeof *kept_files && strcmp(kept->path, path) != 0)
		kept++;
	if (kept == kept_files + sizeof kept_files / sizeof *kept_files)
		return NULL;
	if (kept->fd >= 0 && lstat(path, status) == 0 && status->st_dev == kept->device && status->st_ino == kept->inode)
		return kept;
	if (kept->fd >= 0)
		close(kept->fd);
	kept->fd = open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (kept->fd < 0 || fstat(kept->fd, status) != 0)
		return NULL;
	kept->device = status->st_dev;
	kept->inode = status->st_ino;
	return kept;
}

/* Write over a plain file as we have made it before, and read it back; false when it is none, or not all was written. What is
 * as long or shorter is not cut: under emulation the way through the file system's truncation alone costs milliseconds. */
static bool overwrite(const char *path, const char *content, size_t size, mode_t mode)
{
	struct stat status;
	char found[OVERWRITE_MAX + 1];
	struct kept *kept = size > OVERWRITE_MAX ? NULL : kept_open(path, &status);
	bool plain = kept && S_ISREG(status.st_mode) && status.st_nlink == 1 && (status.st_mode & 07777) == mode;
	bool written = plain && pwrite(kept->fd, content, size, 0) == (ssize_t)size &&
	               (status.st_size <= (off_t)size || ftruncate(kept->fd, size) == 0);
	return written && pread(kept->fd, found, size + 1, 0) == (ssize_t)size && memcmp(found, content, size) == 0;
}

/* Replace a file by another of the same name: a link that the image has there is replaced, not followed. Read back.
 * While nobody runs who could see half a file, writing over the old one is enough, and costs a fork a tenth of the time. */
static int replace(const char *path, const char *content, size_t size, mode_t mode)
{
	char temporary[128];
	if (agent.frozen && overwrite(path, content, size, mode))
		return 0;
	snprintf(temporary, sizeof temporary, "%s.primordia", path);
	int error = write_new(temporary, content, size, mode);
	if (!error && rename(temporary, path) != 0)
		error = errno;
	if (error)
		unlink(temporary);
	return error ? error : etc_compare(path, content, size);
}

static bool append(struct bytes *text, const char *more)
{
	return bytes_append(text, more, strlen(more));
}

static bool append_host(struct bytes *text, const char *address, const char *name, size_t length)
{
	return append(text, address) && append(text, "\t") && bytes_append(text, name, length) && append(text, "\n");
}

int etc_write_hosts(const struct params *params)
{
	struct bytes text = {0};
	bool built = append(&text, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n") &&
	             append_host(&text, *own_address ? own_address : "127.0.1.1", own_name, strlen(own_name));
	for (const char *value = NULL; built && (value = params_next(params, "host", value));) {
		const char *address = strchr(value, '=');
		if (address)
			built = append_host(&text, address + 1, value, address - value);
	}
	int error = built ? replace("/etc/hosts", (const char *)text.data, text.used, 0644) : ENOMEM;
	bytes_free(&text);
	return error;
}

static int write_resolver(const struct params *params)
{
	struct bytes text = {0};
	const char *word = "search";
	bool built = append(&text, "nameserver " OWN_ADDRESS "\n");
	for (const char *value = NULL; built && (value = params_next(params, "search", value)); word = "")
		built = append(&text, word) && append(&text, " ") && append(&text, value);
	if (built && *word == 0)
		built = append(&text, "\n");
	int error = !built ? ENOMEM : text.used > RESOLVER_MAX ? EINVAL : replace("/etc/resolv.conf", (char *)text.data, text.used, 0644);
	bytes_free(&text);
	return error;
}

static int write_line(const char *path, const char *text, mode_t mode)
{
	char line[300];
	size_t size = strlen(text);
	if (size >= sizeof line)
		return EINVAL;
	memcpy(line, text, size);
	line[size] = '\n';
	return replace(path, line, size + 1, mode);
}

int etc_write_machine_id(const struct params *params)
{
	const char *id = params_get(params, "machine_id");
	return id ? write_line("/etc/machine-id", id, 0444) : EINVAL;
}

static void keep(char *place, size_t size, const char *text)
{
	size_t length = strnlen(text, size - 1);
	memcpy(place, text, length);
	place[length] = 0;
}

int etc_write_names(const struct params *params, const char **file)
{
	const char *hostname = params_get(params, "hostname"), *address = params_get(params, "address");
	int error;
	keep(own_name, sizeof own_name, hostname ? hostname : "localhost");
	keep(own_address, sizeof own_address, address ? address : "");
	*file = "/etc/hostname";
	if ((error = write_line(*file, own_name, 0644)))
		return error;
	*file = "/etc/hosts";
	if ((error = etc_write_hosts(params)))
		return error;
	*file = "/etc/resolv.conf";
	return write_resolver(params);
}
