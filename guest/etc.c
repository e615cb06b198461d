#define _GNU_SOURCE
#include "etc.h"

#include "agent.h"
#include "relay.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OVERWRITE_MAX = 4096 };

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

/* Write over a plain file as we have made it before, and read it back; false when it is none, or not all was written. What is
 * as long or shorter is not cut: under emulation the way through the file system's truncation alone costs milliseconds. */
static bool overwrite(const char *path, const char *content, size_t size, mode_t mode)
{
	struct stat status;
	char found[OVERWRITE_MAX + 1];
	int fd = size > OVERWRITE_MAX ? -1 : open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return false;
	bool plain = fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_nlink == 1 && (status.st_mode & 07777) == mode;
	bool written = plain && pwrite(fd, content, size, 0) == (ssize_t)size &&
	               (status.st_size <= (off_t)size || ftruncate(fd, size) == 0);
	bool same = written && pread(fd, found, size + 1, 0) == (ssize_t)size && memcmp(found, content, size) == 0;
	close(fd);
	return same;
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

int etc_write_hosts(const struct params *params)
{
	char *content = NULL;
	size_t size = 0;
	FILE *text = open_memstream(&content, &size);
	if (text == NULL)
		return errno;
	fprintf(text, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
	fprintf(text, "%s\t%s\n", *own_address ? own_address : "127.0.1.1", own_name);
	for (const char *value = NULL; (value = params_next(params, "host", value));) {
		const char *address = strchr(value, '=');
		if (address)
			fprintf(text, "%s\t%.*s\n", address + 1, (int)(address - value), value);
	}
	int error = fclose(text) == 0 ? replace("/etc/hosts", content, size, 0644) : errno;
	free(content);
	return error;
}

static int write_resolver(const struct params *params)
{
	char content[2048];
	size_t size = snprintf(content, sizeof content, "nameserver " OWN_ADDRESS "\n");
	const char *word = "search";
	for (const char *value = NULL; (value = params_next(params, "search", value)); word = "") {
		int count = snprintf(content + size, sizeof content - size, "%s %s", word, value);
		if (count < 0 || size + count >= sizeof content - 1)
			return EINVAL;
		size += count;
	}
	if (*word == 0)
		content[size++] = '\n';
	return replace("/etc/resolv.conf", content, size, 0644);
}

static int write_line(const char *path, const char *text, mode_t mode)
{
	char line[300];
	int size = snprintf(line, sizeof line, "%s\n", text);
	return size < (int)sizeof line ? replace(path, line, size, mode) : EINVAL;
}

int etc_write_machine_id(const struct params *params)
{
	const char *id = params_get(params, "machine_id");
	return id ? write_line("/etc/machine-id", id, 0444) : EINVAL;
}

int etc_write_names(const struct params *params, const char **file)
{
	const char *hostname = params_get(params, "hostname"), *address = params_get(params, "address");
	int error;
	snprintf(own_name, sizeof own_name, "%s", hostname ? hostname : "localhost");
	snprintf(own_address, sizeof own_address, "%s", address ? address : "");
	*file = "/etc/hostname";
	if ((error = write_line(*file, own_name, 0644)))
		return error;
	*file = "/etc/hosts";
	if ((error = etc_write_hosts(params)))
		return error;
	*file = "/etc/resolv.conf";
	return write_resolver(params);
}
