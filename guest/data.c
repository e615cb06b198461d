/* A file system on a data drive is the host's to make and the guest's to use. The drive of a fork has another file behind it,
 * of another size, than what the frozen kernel remembers of its template's: the driver is bound anew, and asks again.
 *
 * A file system that is stilled (FIFREEZE) for a snapshot makes every writer wait, so it is never left so: the agent
 * lets it go on by itself when the deadline has passed, whatever has become of the host. */
#define _GNU_SOURCE
#include "data.h"

#include "agent.h"
#include "calls.h"
#include "loop.h"
#include "spawn.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { STILL_MS = 5000, STILL_MAX_MS = 60000, STILL_MARGIN_MS = 200, THAW_AGAIN_MS = 1000 };

static struct data_mount {
	char *serial, *path;
	bool xfs, read_only;
} mounts[DATA_MAX];
static int mount_count;

/* ---- mounting ---- */

static bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool written = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	if (fd >= 0)
		close(fd);
	return written;
}

/* Have the drive's driver begin anew, with nothing remembered of the drive: no size, no cache. */
static bool bind_anew(const char *serial, struct failure *failure)
{
	char device[300], path[512], target[512];
	if (!drive_find(serial, device, sizeof device))
		return fail(failure, ENODEV, "drive %s", serial);
	snprintf(path, sizeof path, "/sys/block/%s/device", strrchr(device, '/') + 1);
	ssize_t size = readlink(path, target, sizeof target - 1);
	if (size < 0)
		return fail(failure, errno, "drive %s", serial);
	target[size] = 0;
	const char *slash = strrchr(target, '/'), *name = slash ? slash + 1 : target;
	if (!write_text("/sys/bus/virtio/drivers/virtio_blk/unbind", name) ||
	    !write_text("/sys/bus/virtio/drivers/virtio_blk/bind", name))
		return fail(failure, errno, "bind drive %s anew", serial);
	return true;
}

/* Whether the drive is mounted there, or (NULL) anywhere. */
static bool mounted_already(const char *serial, const char *path)
{
	for (int i = 0; i < mount_count; i++)
		if (strcmp(mounts[i].serial, serial) == 0 && (path == NULL || strcmp(mounts[i].path, path) == 0))
			return true;
	return false;
}

/* ---- whose a new file system is ---- */

static bool is_new(int fd)
{
	struct stat status;
	if (fstat(fd, &status) != 0 || status.st_uid != 0 || status.st_gid != 0)
		return false;
	int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *folder = again >= 0 ? fdopendir(again) : NULL;
	if (folder == NULL) {
		close_all(&again, 1);
		return false;
	}
	bool empty = true;
	for (struct dirent *entry; empty && (entry = readdir(folder));)
		empty = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 || strcmp(entry->d_name, "lost+found") == 0;
	closedir(folder);
	return empty;
}

void data_give(uid_t uid, gid_t gid)
{
	for (int i = 0; i < mount_count; i++) {
		int fd = mounts[i].read_only ? -1 : open(mounts[i].path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd >= 0 && is_new(fd) && fchown(fd, uid, gid) != 0)
			agent_log("%s stays root's own: %s", mounts[i].path, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
}

/* ---- growing ---- */

/* linux/ext4.h and xfs_fs.h are not among the kernel's headers for programs: their ioctls, as the kernel has them. */
#define EXT4_RESIZE _IOW('f', 16, uint64_t)

struct xfs_geometry {
	uint32_t blocksize, rtextsize, agblocks, agcount, logblocks, sectsize, inodesize, imaxpct;
	uint64_t datablocks, rtblocks, rtextents, logstart;
	unsigned char uuid[16];
	uint32_t sunit, swidth;
	int32_t version;
	uint32_t flags, logsectsize, rtsectsize, dirblocksize;
};
#define XFS_GEOMETRY _IOR('X', 100, struct xfs_geometry)

struct xfs_growth {
	uint64_t newblocks;
	uint32_t imaxpct;
};
#define XFS_GROW _IOW('X', 110, struct xfs_growth)

static int grow_ext4(int root, uint64_t bytes)
{
	struct statfs found;
	if (fstatfs(root, &found) != 0)
		return errno;
	uint64_t blocks = bytes / (uint64_t)found.f_bsize;
	return ioctl(root, EXT4_RESIZE, &blocks) == 0 ? 0 : errno;
}

static int grow_xfs(int root, uint64_t bytes)
{
	struct xfs_geometry now;
	if (ioctl(root, XFS_GEOMETRY, &now) != 0)
		return errno;
	struct xfs_growth wanted = {.newblocks = bytes / now.blocksize, .imaxpct = now.imaxpct};
	if (wanted.newblocks <= now.datablocks)
		return 0;
	return ioctl(root, XFS_GROW, &wanted) == 0 ? 0 : errno;
}

/* Make a file system as large as its drive is now. */
static int grow(const struct data_mount *one)
{
	char device[300];
	uint64_t bytes = 0;
	if (one->read_only)
		return 0;
	if (!drive_find(one->serial, device, sizeof device))
		return ENODEV;
	int drive = open(device, O_RDONLY | O_CLOEXEC), root = open(one->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int error = drive < 0 || root < 0 || ioctl(drive, BLKGETSIZE64, &bytes) != 0 ? errno : 0;
	if (!error)
		error = one->xfs ? grow_xfs(root, bytes) : grow_ext4(root, bytes);
	close_all((int[]){drive, root}, 2);
	return error;
}

/* SERIAL:FILESYSTEM:ro|rw:PATH */
static bool mount_one(const char *value, struct failure *failure)
{
	char copy[4500], *path = copy;
	snprintf(copy, sizeof copy, "%s", value);
	const char *serial = strsep(&path, ":"), *type = path ? strsep(&path, ":") : NULL, *access = path ? strsep(&path, ":") : NULL;
	if (access == NULL || path == NULL || *path != '/')
		return fail(failure, EINVAL, "mount %.200s", value);
	if (mounted_already(serial, path))
		return true;
	if (mount_count == DATA_MAX)
		return fail(failure, EINVAL, "mount %.200s: more than %d", value, DATA_MAX);
	struct data_mount one = {.xfs = strcmp(type, "xfs") == 0, .read_only = strcmp(access, "ro") == 0};
	if (!ensure_folder(path))
		return fail(failure, errno, "folder %.200s", path);
	if (!mounted_already(serial, NULL) && !bind_anew(serial, failure))
		return false;
	if (!drive_mount(serial, path, type, one.read_only ? MS_RDONLY : 0, NULL, failure))
		return false;
	one.serial = strdup(serial);
	one.path = strdup(path);
	mounts[mount_count++] = one;
	int error = grow(&one);
	if (error)
		agent_log("the file system at %s stays as large as it is: %s", path, strerror(error));
	return true;
}

bool data_mounts(const struct params *params, struct failure *failure)
{
	for (const char *value = NULL; (value = params_next(params, "mount", value));)
		if (!mount_one(value, failure))
			return false;
	return true;
}

static int grow_job(const char *unused)
{
	(void)unused;
	int failed = 0;
	job_started();
	for (int i = 0; i < mount_count; i++) {
		int error = grow(&mounts[i]);
		if (error)
			fprintf(stderr, "cannot make the file system at %s as large as its drive: %s", mounts[i].path, strerror(failed = error));
	}
	return failed;
}

void grow_data_open(uint32_t id, const struct params *params)
{
	(void)params;
	job_open(id, grow_job, "");
}

/* ---- stilling ---- */

static struct timer still_timer;

/* On each mount, in any case; 0, or the last error that is not `fine`, having complained. */
static int tell_all(unsigned long request, int fine, const char *what)
{
	int failed = 0;
	for (int i = 0; i < mount_count; i++) {
		int fd = open(mounts[i].path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd < 0 || (ioctl(fd, request, 0) != 0 && errno != fine)) {
			failed = errno;
			fprintf(stderr, "cannot %s %s: %s", what, mounts[i].path, strerror(failed));
		}
		if (fd >= 0)
			close(fd);
	}
	return failed;
}

static int thaw_job(const char *unused)
{
	(void)unused;
	job_started();
	return tell_all(FITHAW, EINVAL, "let go on"); /* EINVAL: it was not stilled */
}

/* `until`: milliseconds of now_ms, after which the agent no longer looks. */
static int still_job(const char *until)
{
	job_started();
	int error = tell_all(FIFREEZE, EBUSY, "still"); /* EBUSY: it is stilled already */
	if (!error && now_ms() >= strtoll(until, NULL, 10)) {
		fprintf(stderr, "it took too long to still the file systems");
		error = ETIMEDOUT;
	}
	if (error)
		tell_all(FITHAW, EINVAL, "let go on");
	return error;
}

static void on_late(struct timer *timer);

static void late_started(struct child *child, int error, const char *what)
{
	(void)child;
	(void)what;
	if (error)
		timer_set(&still_timer, THAW_AGAIN_MS, on_late);
}

static void late_ended(struct child *child, int wait_status)
{
	child->pid = 0;
	if (wait_status)
		timer_set(&still_timer, THAW_AGAIN_MS, on_late);
}

static void on_late(struct timer *timer)
{
	static struct child child;
	struct spawn spawn = {.job = thaw_job, .job_argument = ""};
	if (child.pid) {
		timer_set(timer, THAW_AGAIN_MS, on_late);
		return;
	}
	child = (struct child){.on_started = late_started, .on_exit = late_ended, .report.fd = -1};
	for (int i = 0; i < 3; i++)
		spawn.stdio[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
	agent_log("the file systems of data go on: nobody has said so in time");
	if (child_spawn(&child, &spawn) != 0)
		timer_set(timer, THAW_AGAIN_MS, on_late);
	close_all(spawn.stdio, 3);
}

void freeze_data_open(uint32_t id, const struct params *params)
{
	char until[32];
	long long deadline_ms = params_number(params, "deadline_ms", 1, STILL_MAX_MS, STILL_MS);
	snprintf(until, sizeof until, "%lld", (long long)now_ms() + deadline_ms);
	timer_set(&still_timer, deadline_ms + STILL_MARGIN_MS, on_late); /* behind the job's own look at the clock */
	job_open(id, still_job, until);
}

void thaw_data_open(uint32_t id, const struct params *params)
{
	(void)params;
	timer_clear(&still_timer);
	job_open(id, thaw_job, "");
}

/* ---- the end ---- */

int data_open(int *fds)
{
	for (int i = 0; i < mount_count; i++) {
		fds[i] = open(mounts[i].path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fds[i] < 0) {
			int error = errno;
			while (i-- > 0)
				close(fds[i]);
			return -error;
		}
	}
	return mount_count;
}

void data_thaw(void)
{
	tell_all(FITHAW, EINVAL, "let go on");
}

void data_leave(void)
{
	while (mount_count > 0) {
		const char *path = mounts[--mount_count].path;
		if (umount2(path, UMOUNT_NOFOLLOW) != 0 && mount(NULL, path, NULL, MS_REMOUNT | MS_RDONLY, NULL) != 0)
			agent_log("cannot unmount %s: %s", path, strerror(errno));
	}
}
