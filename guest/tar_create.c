/* A tar stream of a file or folder to descriptor 1. The top entry is named by the path's last part, as `docker cp`
 * has it. Sockets and devices are left out, and so is what lies in /proc and /sys. */
#define _GNU_SOURCE
#include "spawn.h"
#include "tar.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <linux/magic.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { DEPTH_MAX = 512, CHUNK = 65536, TAR_RECORD = 20 * TAR_BLOCK };

struct seen {
	dev_t device;
	ino_t inode;
	char *path;
	struct seen *next;
};

static struct seen *links[1024];
static struct tar_entry entry;
static uint64_t total;

static _Noreturn void die(int error, const char *path)
{
	fprintf(stderr, "cannot read %s", path);
	exit(error);
}

static void put(const void *data, size_t size)
{
	const char *at = data;
	total += size;
	while (size > 0) {
		ssize_t count = write(1, at, size);
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			exit(errno);
		at += count;
		size -= count;
	}
}

static void put_padding(uint64_t size, unsigned unit)
{
	static const char zeros[TAR_RECORD];
	if (size % unit)
		put(zeros, unit - size % unit);
}

static void put_header(void)
{
	uint8_t block[TAR_BLOCK];
	char records[3 * TAR_PATH_MAX];
	long size = tar_format_pax(&entry, records, sizeof records);
	if (size > 0) {
		static struct tar_entry pax;
		pax = (struct tar_entry){.type = TAR_PAX, .mode = 0644, .size = size, .path = "pax-header"};
		tar_format_header(&pax, block);
		put(block, sizeof block);
		put(records, size);
		put_padding(size, TAR_BLOCK);
	}
	tar_format_header(&entry, block);
	put(block, sizeof block);
}

/* Exactly the size that the header promised: a file that grew is cut, one that shrank is filled with zeros. */
static void put_content(int fd, uint64_t size)
{
	static char buffer[CHUNK];
	for (uint64_t left = size; left > 0;) {
		ssize_t count = read(fd, buffer, left < sizeof buffer ? left : sizeof buffer);
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			die(errno, entry.path);
		if (count == 0) {
			count = left < sizeof buffer ? (ssize_t)left : (ssize_t)sizeof buffer;
			memset(buffer, 0, count);
		}
		put(buffer, count);
		left -= count;
	}
	put_padding(size, TAR_BLOCK);
}

/* The path under which this inode went before, or NULL; remembers it then. */
static const char *earlier_link(const struct stat *status)
{
	struct seen **slot = &links[(status->st_ino ^ status->st_dev) % 1024];
	for (struct seen *one = *slot; one; one = one->next)
		if (one->device == status->st_dev && one->inode == status->st_ino)
			return one->path;
	struct seen *one = malloc(sizeof *one);
	if (one == NULL)
		return NULL; /* then it is sent twice */
	*one = (struct seen){status->st_dev, status->st_ino, strdup(entry.path), *slot};
	*slot = one;
	return NULL;
}

static void put_file(int folder, const char *name, const struct stat *status)
{
	const char *earlier = status->st_nlink > 1 ? earlier_link(status) : NULL;
	if (earlier) {
		entry.type = TAR_HARDLINK;
		strcpy(entry.link, earlier);
		put_header();
		return;
	}
	/* not blocking, should the file have become a FIFO meanwhile */
	int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		die(errno, entry.path);
	entry.type = TAR_FILE;
	entry.size = status->st_size;
	put_header();
	put_content(fd, entry.size);
	close(fd);
}

static void put_symlink(int folder, const char *name)
{
	ssize_t size = readlinkat(folder, name, entry.link, sizeof entry.link - 1);
	if (size < 0)
		die(errno, entry.path);
	entry.link[size] = 0;
	entry.type = TAR_SYMLINK;
	put_header();
}

static bool is_kernel_view(int fd)
{
	struct statfs status;
	return fstatfs(fd, &status) == 0 && (status.f_type == PROC_SUPER_MAGIC || status.f_type == SYSFS_MAGIC);
}

static void put_one(int folder, const char *name, int depth);

static void put_folder(int folder, const char *name, int depth)
{
	size_t length = strlen(entry.path);
	int fd = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *list = fd < 0 ? NULL : fdopendir(fd);
	if (list == NULL)
		die(errno, entry.path);
	if (depth > DEPTH_MAX)
		die(ELOOP, entry.path);
	entry.type = TAR_FOLDER;
	entry.path[length] = '/';
	entry.path[length + 1] = 0;
	put_header();
	for (struct dirent *one; !is_kernel_view(fd) && (one = readdir(list));) {
		if (strcmp(one->d_name, ".") == 0 || strcmp(one->d_name, "..") == 0)
			continue;
		if (length + 1 + strlen(one->d_name) + 2 > sizeof entry.path)
			die(ENAMETOOLONG, entry.path);
		strcpy(entry.path + length + 1, one->d_name);
		put_one(fd, one->d_name, depth + 1);
	}
	closedir(list);
}

static void put_one(int folder, const char *name, int depth)
{
	struct stat status;
	if (fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) != 0) {
		if (errno == ENOENT && depth > 0)
			return; /* gone since the folder was listed */
		die(errno, entry.path);
	}
	entry.mode = status.st_mode & 07777;
	entry.uid = status.st_uid;
	entry.gid = status.st_gid;
	entry.mtime = status.st_mtime;
	entry.size = 0;
	entry.link[0] = 0;
	if (S_ISREG(status.st_mode)) {
		put_file(folder, name, &status);
	} else if (S_ISDIR(status.st_mode)) {
		put_folder(folder, name, depth);
	} else if (S_ISLNK(status.st_mode)) {
		put_symlink(folder, name);
	} else if (S_ISFIFO(status.st_mode)) {
		entry.type = TAR_FIFO;
		put_header();
	}
}

int tar_create_job(const char *path)
{
	static const char end[2 * TAR_BLOCK];
	char *parent = strdup(path), *leaf = strdup(path);
	struct stat status;
	const char *folder_path = dirname(parent), *name = basename(leaf);
	int folder = open(folder_path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	/* `a/..` and `/` have no name of their own to go by */
	bool nameless = strcmp(name, "/") == 0 || strcmp(name, "..") == 0 || strcmp(name, ".") == 0;
	if (folder < 0 || fstatat(folder, nameless ? "." : name, &status, AT_SYMLINK_NOFOLLOW) != 0 || strlen(name) > NAME_MAX)
		job_refuse(errno ? errno : ENAMETOOLONG, path);
	job_started();
	if (nameless && strcmp(name, "..") == 0)
		folder = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	strcpy(entry.path, nameless ? "." : name);
	put_one(folder, nameless ? "." : name, 0);
	put(end, sizeof end);
	put_padding(total, TAR_RECORD);
	return 0;
}
