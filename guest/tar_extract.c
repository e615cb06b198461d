/* Unpack a tar stream from descriptor 0 into a folder. No entry gets outside: names are relative and without `..`, and
 * every folder on the way is opened by openat2 with RESOLVE_BENEATH, so that a link in the archive, or one that was there
 * before, leads nowhere else. What is replaced is unlinked first, never written through. */
#define _GNU_SOURCE
#include "spawn.h"
#include "tar.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAX_MAX = 1024 * 1024, CHUNK = 65536 };

/* Folders get mode and time last: filling them would change both. */
struct folder {
	char *path;
	mode_t mode;
	int64_t mtime;
	struct folder *next;
};

static int top;
static struct folder *folders;

__attribute__((format(printf, 2, 3))) static _Noreturn void die(int error, const char *format, ...)
{
	va_list values;
	va_start(values, format);
	vfprintf(stderr, format, values);
	va_end(values);
	exit(error);
}

/* ---- the stream ---- */

/* False at the very end; an end in the middle is an error. */
static bool take(void *data, size_t size)
{
	size_t have = 0;
	while (have < size) {
		ssize_t count = read(0, (char *)data + have, size - have);
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			die(errno, "cannot read the stream");
		if (count == 0 && have == 0)
			return false;
		if (count == 0)
			die(EINVAL, "the tar stream ends in the middle");
		have += count;
	}
	return true;
}

static void take_all(void *data, size_t size)
{
	if (size > 0 && !take(data, size))
		die(EINVAL, "the tar stream ends in the middle");
}

static uint64_t padding(uint64_t size)
{
	return (TAR_BLOCK - size % TAR_BLOCK) % TAR_BLOCK;
}

static void skip(uint64_t size)
{
	static char nothing[CHUNK];
	while (size > 0) {
		size_t part = size < sizeof nothing ? size : sizeof nothing;
		take_all(nothing, part);
		size -= part;
	}
}

static char *take_text(uint64_t size)
{
	if (size > PAX_MAX)
		die(EINVAL, "a tar header has %llu bytes", (unsigned long long)size);
	char *text = malloc(size + 1);
	if (text == NULL)
		die(ENOMEM, "no memory");
	take_all(text, size);
	skip(padding(size));
	text[size] = 0;
	return text;
}

/* ---- places ---- */

static int open_beneath(const char *path)
{
	struct open_how how = {
		.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
	};
	return (int)syscall(SYS_openat2, top, *path ? path : ".", &how, sizeof how);
}

static int open_or_make(char *path)
{
	int fd = open_beneath(path);
	if (fd >= 0 || errno != ENOENT)
		return fd;
	char *slash = strrchr(path, '/');
	if (slash)
		*slash = 0;
	int parent = open_or_make(slash ? path : "");
	if (slash)
		*slash = '/';
	if (parent < 0)
		return -1;
	int made = mkdirat(parent, slash ? slash + 1 : path, 0755);
	int error = errno;
	close(parent);
	errno = error;
	return made == 0 || error == EEXIST ? open_beneath(path) : -1;
}

/* The folder that holds `path`, made if missing, and the last part of the name. */
static int open_parent(const char *path, const char **leaf)
{
	char copy[TAR_PATH_MAX];
	strcpy(copy, path);
	char *slash = strrchr(copy, '/');
	*leaf = slash ? path + (slash - copy) + 1 : path;
	if (slash)
		*slash = 0;
	int fd = open_or_make(slash ? copy : "");
	if (fd < 0 && errno == EXDEV)
		die(EPERM, "%s leads out of the folder", path);
	if (fd < 0)
		die(errno, "cannot open the folder of %s", path);
	return fd;
}

static void make_way(int parent, const char *leaf, const struct tar_entry *entry)
{
	if (unlinkat(parent, leaf, 0) != 0 && errno != ENOENT)
		die(errno, "cannot replace %s", entry->path);
}

static void set_owner_and_mode(int parent, const char *leaf, const struct tar_entry *entry)
{
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = entry->mtime}};
	if (fchownat(parent, leaf, entry->uid, entry->gid, AT_SYMLINK_NOFOLLOW) != 0)
		die(errno, "cannot set the owner of %s", entry->path);
	/* the owner's change clears set-uid bits, so the mode comes after it; a link has none */
	if (entry->type != TAR_SYMLINK && fchmodat(parent, leaf, entry->mode, 0) != 0)
		die(errno, "cannot set the mode of %s", entry->path);
	utimensat(parent, leaf, times, AT_SYMLINK_NOFOLLOW);
}

/* ---- entries ---- */

static void extract_content(int fd, const struct tar_entry *entry)
{
	static char buffer[CHUNK];
	for (uint64_t left = entry->size; left > 0;) {
		size_t part = left < sizeof buffer ? left : sizeof buffer;
		take_all(buffer, part);
		for (size_t done = 0; done < part;) {
			ssize_t count = write(fd, buffer + done, part - done);
			if (count < 0 && errno != EINTR)
				die(errno, "cannot write %s", entry->path);
			done += count > 0 ? (size_t)count : 0;
		}
		left -= part;
	}
	skip(padding(entry->size));
}

static void extract_file(int parent, const char *leaf, const struct tar_entry *entry)
{
	make_way(parent, leaf, entry);
	int fd = openat(parent, leaf, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		die(errno, "cannot make %s", entry->path);
	extract_content(fd, entry);
	if (close(fd) != 0)
		die(errno, "cannot write %s", entry->path);
	set_owner_and_mode(parent, leaf, entry);
}

static void extract_hardlink(int parent, const char *leaf, struct tar_entry *entry)
{
	const char *from;
	if (!tar_clean_path(entry->link) || *entry->link == 0)
		die(EPERM, "the link %s leads out of the folder", entry->path);
	int source = open_parent(entry->link, &from);
	if (strcmp(entry->link, entry->path) != 0) {
		make_way(parent, leaf, entry);
		if (linkat(source, from, parent, leaf, 0) != 0)
			die(errno, "cannot link %s", entry->path);
	}
	close(source);
}

static void remember_folder(const struct tar_entry *entry)
{
	struct folder *folder = malloc(sizeof *folder);
	if (folder == NULL || (folder->path = strdup(entry->path)) == NULL)
		die(ENOMEM, "no memory");
	folder->mode = entry->mode;
	folder->mtime = entry->mtime;
	folder->next = folders;
	folders = folder;
}

static void extract_folder(int parent, const char *leaf, const struct tar_entry *entry)
{
	struct stat status;
	if (mkdirat(parent, leaf, 0700) != 0) {
		if (errno != EEXIST)
			die(errno, "cannot make %s", entry->path);
		if (fstatat(parent, leaf, &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(status.st_mode)) {
			/* a link to a folder inside stands for it, as /lib does in many roots */
			int fd = open_beneath(entry->path);
			if (fd < 0)
				die(errno == EXDEV ? EPERM : errno, "%s leads out of the folder", entry->path);
			close(fd);
			return;
		}
		if (!S_ISDIR(status.st_mode))
			die(ENOTDIR, "cannot replace %s", entry->path);
	}
	if (fchownat(parent, leaf, entry->uid, entry->gid, AT_SYMLINK_NOFOLLOW) != 0)
		die(errno, "cannot set the owner of %s", entry->path);
	remember_folder(entry);
}

static void finish_folders(void)
{
	for (struct folder *folder = folders; folder; folder = folder->next) {
		const char *leaf;
		int parent = open_parent(folder->path, &leaf);
		struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = folder->mtime}};
		fchmodat(parent, leaf, folder->mode, 0);
		utimensat(parent, leaf, times, AT_SYMLINK_NOFOLLOW);
		close(parent);
	}
}

static void extract_entry(struct tar_entry *entry)
{
	const char *leaf;
	if (!tar_clean_path(entry->path))
		die(EPERM, "%s leads out of the folder", entry->path);
	if (*entry->path == 0) { /* the folder itself: it exists, and keeps its owner and mode */
		skip(entry->type == TAR_FILE ? entry->size + padding(entry->size) : 0);
		return;
	}
	int parent = open_parent(entry->path, &leaf);
	switch (entry->type) {
	case TAR_FILE:
		extract_file(parent, leaf, entry);
		break;
	case TAR_FOLDER:
		extract_folder(parent, leaf, entry);
		break;
	case TAR_HARDLINK:
		extract_hardlink(parent, leaf, entry);
		break;
	case TAR_SYMLINK:
	case TAR_FIFO:
		make_way(parent, leaf, entry);
		if ((entry->type == TAR_FIFO ? mkfifoat(parent, leaf, 0600) : symlinkat(entry->link, parent, leaf)) != 0)
			die(errno, "cannot make %s", entry->path);
		set_owner_and_mode(parent, leaf, entry);
		break;
	default:
		die(EINVAL, "%s is of a type (%c) that is not taken", entry->path, entry->type);
	}
	close(parent);
}

/* Long names and pax records that precede an entry's own header. */
struct ahead {
	char *name, *link, *pax;
	uint64_t pax_size;
};

static void apply_ahead(struct ahead *ahead, struct tar_entry *entry)
{
	unsigned seen = 0;
	if (ahead->name)
		snprintf(entry->path, sizeof entry->path, "%s", ahead->name);
	if (ahead->link)
		snprintf(entry->link, sizeof entry->link, "%s", ahead->link);
	if ((ahead->name && strlen(ahead->name) >= TAR_PATH_MAX) || (ahead->link && strlen(ahead->link) >= TAR_PATH_MAX))
		die(ENAMETOOLONG, "a name in the tar stream is too long");
	if (ahead->pax && !tar_parse_pax(ahead->pax, ahead->pax_size, entry, &seen))
		die(EINVAL, "a pax header is malformed");
	free(ahead->name);
	free(ahead->link);
	free(ahead->pax);
	*ahead = (struct ahead){0};
}

static bool is_zero(const uint8_t *block)
{
	static const uint8_t zero[TAR_BLOCK];
	return memcmp(block, zero, TAR_BLOCK) == 0;
}

static void take_ahead(char **place, uint64_t size)
{
	free(*place);
	*place = take_text(size);
}

static void extract_all(void)
{
	static struct tar_entry entry;
	struct ahead ahead = {0};
	uint8_t block[TAR_BLOCK];
	while (take(block, sizeof block) && !is_zero(block)) {
		if (!tar_parse_header(block, &entry))
			die(EINVAL, "this is no tar stream, or it is damaged");
		switch (entry.type) {
		case TAR_PAX:
			take_ahead(&ahead.pax, entry.size);
			ahead.pax_size = entry.size;
			break;
		case TAR_GNU_NAME:
			take_ahead(&ahead.name, entry.size);
			break;
		case TAR_GNU_LINK:
			take_ahead(&ahead.link, entry.size);
			break;
		case TAR_PAX_GLOBAL:
			skip(entry.size + padding(entry.size));
			break;
		default:
			apply_ahead(&ahead, &entry);
			extract_entry(&entry);
		}
	}
}

int tar_extract_job(const char *folder)
{
	static char rest[CHUNK];
	top = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (top < 0)
		job_refuse(errno, folder);
	umask(0);
	job_started();
	extract_all();
	finish_folders();
	while (read(0, rest, sizeof rest) > 0) /* padding after the end */
		;
	return 0;
}
