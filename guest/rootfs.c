/* Everything is prepared below /newroot, inside a chroot so that no link of the image leads out of it, and only then
 * becomes the root. A failure before that takes the mounts away again, so that prepare may be repeated. */
#define _GNU_SOURCE
#include "rootfs.h"

#include "agent.h"
#include "bootid.h"
#include "spawn.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { DRIVE_WAIT_MS = 2000 };

#define NEW_ROOT "/newroot"

bool fail(struct failure *failure, int number, const char *format, ...)
{
	va_list values;
	va_start(values, format);
	vsnprintf(failure->step, sizeof failure->step, format, values);
	va_end(values);
	failure->number = number;
	return false;
}

static bool ensure_dir(const char *path, mode_t mode)
{
	return mkdir(path, mode) == 0 || errno == EEXIST;
}

/* mkdir -p of everything before the last slash. */
static bool ensure_parents(const char *path)
{
	char copy[4096];
	if (strlen(path) >= sizeof copy) {
		errno = ENAMETOOLONG;
		return false;
	}
	strcpy(copy, path);
	for (char *at = copy + 1; (at = strchr(at, '/')); at++) {
		*at = 0;
		if (!ensure_dir(copy, 0755))
			return false;
		*at = '/';
	}
	return true;
}

/* ---- drives ---- */

static bool serial_is(const char *block, const char *wanted)
{
	char path[300], serial[64] = "";
	snprintf(path, sizeof path, "/sys/block/%s/serial", block);
	FILE *file = fopen(path, "re");
	if (file == NULL)
		return false;
	bool read_one = fgets(serial, sizeof serial, file) != NULL;
	fclose(file);
	serial[strcspn(serial, "\n")] = 0;
	return read_one && strcmp(serial, wanted) == 0;
}

static bool look_for_drive(const char *serial, char *device, size_t size)
{
	DIR *blocks = opendir("/sys/block");
	bool found = false;
	for (struct dirent *entry; blocks && !found && (entry = readdir(blocks));)
		if (entry->d_name[0] != '.' && serial_is(entry->d_name, serial)) {
			snprintf(device, size, "/dev/%s", entry->d_name);
			found = true;
		}
	if (blocks)
		closedir(blocks);
	return found;
}

/* A drive may appear a moment after its driver was loaded. */
bool drive_find(const char *serial, char *device, size_t size)
{
	for (int waited = 0; !look_for_drive(serial, device, size); waited += 10) {
		if (waited >= DRIVE_WAIT_MS)
			return false;
		usleep(10000);
	}
	return true;
}

/* What the kernel remembers of a drive may be of another one: a fork's has another file behind it than its template's. */
static void forget_content(const char *device)
{
	int fd = open(device, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	ioctl(fd, BLKFLSBUF, 0);
	close(fd);
}

bool drive_mount(const char *serial, const char *path, const char *type, unsigned long flags, const char *options,
                 struct failure *failure)
{
	char device[300];
	if (serial == NULL || *serial == 0)
		return fail(failure, EINVAL, "drive for %s", path);
	if (!drive_find(serial, device, sizeof device))
		return fail(failure, ENODEV, "drive %s", serial);
	forget_content(device);
	if (mount(device, path, type, flags, options) != 0)
		return fail(failure, errno, "mount drive %s as %s", serial, type);
	return true;
}

static bool build_overlay(const struct params *params, struct failure *failure)
{
	char options[256], upper[64], work[64];
	if (agent.hosted_root) {
		if (mount(agent.hosted_root, NEW_ROOT, NULL, MS_BIND | MS_REC, NULL) != 0)
			return fail(failure, errno, "bind the root");
		return true;
	}
	ensure_dir("/lower", 0755);
	ensure_dir("/scratch", 0755);
	if (!drive_mount(params_get(params, "root"), "/lower", "ext4", MS_RDONLY | MS_NOATIME, NULL, failure) ||
	    !drive_mount(params_get(params, "scratch"), "/scratch", "ext4", MS_NOATIME | MS_LAZYTIME, "noinit_itable", failure))
		return false;
	/* New folders for each attempt: overlay refuses the work folder of a volatile mount that went before. */
	int number = 0;
	do
		snprintf(upper, sizeof upper, "/scratch/upper%d", number++);
	while (mkdir(upper, 0755) != 0 && errno == EEXIST);
	snprintf(work, sizeof work, "/scratch/work%d", number - 1);
	if (mkdir(work, 0755) != 0)
		return fail(failure, errno, "scratch folders");
	/* volatile: the scratch disk does not outlive the machine, so syncing it is waste */
	snprintf(options, sizeof options, "lowerdir=/lower,upperdir=%s,workdir=%s,volatile", upper, work);
	if (mount("overlay", NEW_ROOT, "overlay", 0, options) != 0)
		return fail(failure, errno, "mount the overlay");
	return true;
}

/* ---- inside the new root ---- */

struct kernel_mount {
	const char *path, *type, *options;
	unsigned long flags;
	mode_t mode;
};

static bool mount_all(const struct kernel_mount *mounts, size_t count, struct failure *failure)
{
	for (size_t i = 0; i < count; i++) {
		const struct kernel_mount *one = &mounts[i];
		if (!ensure_dir(one->path, one->mode) || mount(one->type, one->path, one->type, one->flags, one->options) != 0)
			if (errno != EBUSY)
				return fail(failure, errno, "mount %s", one->path);
	}
	return true;
}

static const struct kernel_mount basic_mounts[] = {
	{"/proc", "proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC, 0755},
	{"/sys", "sysfs", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC, 0755},
	{"/dev", "devtmpfs", "mode=0755", MS_NOSUID | MS_NOEXEC, 0755},
};

static const struct kernel_mount further_mounts[] = {
	{"/dev/pts", "devpts", "gid=5,mode=0620,ptmxmode=0666", MS_NOSUID | MS_NOEXEC, 0755},
	{"/dev/shm", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV, 01777},
	{"/dev/mqueue", "mqueue", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC, 01777},
	{"/run", "tmpfs", "mode=0755", MS_NOSUID | MS_NODEV, 0755},
};

static bool mount_further(struct failure *failure)
{
	static const char *const links[][2] = {
		{"/proc/self/fd", "/dev/fd"}, {"fd/0", "/dev/stdin"}, {"fd/1", "/dev/stdout"}, {"fd/2", "/dev/stderr"},
	};
	if (!mount_all(basic_mounts, agent.hosted_root ? 1 : 3, failure) || !mount_all(further_mounts, 4, failure))
		return false;
	for (size_t i = 0; i < sizeof links / sizeof *links; i++)
		if (symlink(links[i][0], links[i][1]) != 0 && errno != EEXIST)
			return fail(failure, errno, "link %s", links[i][1]);
	/* many images leave these out */
	if (!ensure_dir("/tmp", 01777) || !ensure_dir("/etc", 0755) || !ensure_dir("/root", 0700))
		return fail(failure, errno, "make /tmp and /etc");
	return chmod("/tmp", 01777) == 0 || fail(failure, errno, "open /tmp");
}

bool ensure_folder(const char *path)
{
	return ensure_parents(path) && ensure_dir(path, 0755);
}

bool attach_file(int tree, const char *path, bool *created)
{
	if (!ensure_parents(path))
		return false;
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
	if (created)
		*created = fd >= 0;
	if (fd < 0)
		fd = open(path, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return false;
	close(fd);
	return move_mount(tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) == 0;
}

/* Our own files that programs are to find: kbl is this very program. */
static bool attach_tools(int kbl, int interpreter, struct failure *failure)
{
	if (!ensure_dir("/run/primordia", 0755) || chmod("/run/primordia", 01777) != 0)
		return fail(failure, errno, "make /run/primordia");
	if (!attach_file(kbl, "/usr/local/bin/kbl", NULL))
		return fail(failure, errno, "install kbl");
	if (interpreter >= 0 && !attach_file(interpreter, "/run/primordia/interpreter.py", NULL))
		return fail(failure, errno, "install the interpreter");
	return true;
}

static void undo(void)
{
	umount2(NEW_ROOT, MNT_DETACH);
	umount2("/scratch", MNT_DETACH);
	umount2("/lower", MNT_DETACH);
	umount2("/own", MNT_DETACH);
}

static bool fill_root(int own, int kbl, int interpreter, struct failure *failure)
{
	if (!mount_further(failure) || !attach_tools(kbl, interpreter, failure))
		return false;
	int error = boot_id_cover(own);
	return error == 0 || fail(failure, error, "cover the boot id");
}

static bool fill_in_chroot(int own, int kbl, int interpreter, struct failure *failure)
{
	int old_root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (old_root < 0 || chdir(NEW_ROOT) != 0 || chroot(".") != 0) {
		close(old_root);
		return fail(failure, errno, "enter the new root");
	}
	bool filled = fill_root(own, kbl, interpreter, failure);
	if (fchdir(old_root) != 0 || chroot(".") != 0)
		filled = fail(failure, errno, "leave the new root");
	close(old_root);
	return filled;
}

/* As switch_root(8) does: the initramfs itself cannot be unmounted, it is covered. */
static bool make_it_the_root(struct failure *failure)
{
	if (chdir(NEW_ROOT) != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 || chdir("/") != 0)
		return fail(failure, errno, "switch to the new root");
	return true;
}

/* A tmpfs behind the root, which programs see only where we bind a file of it. */
static int mount_own(struct failure *failure)
{
	ensure_dir("/own", 0700);
	if (mount("tmpfs", "/own", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700") != 0) {
		fail(failure, errno, "mount a folder for secrets");
		return -1;
	}
	return open("/own", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

int rootfs_enter(const struct params *params, struct failure *failure)
{
	ensure_dir(NEW_ROOT, 0755);
	bool ready = build_overlay(params, failure);
	int own = ready ? mount_own(failure) : -1;
	int kbl = open_tree(AT_FDCWD, "/proc/self/exe", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	int interpreter = open_tree(AT_FDCWD, "/interpreter.py", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	ready = own >= 0 && fill_in_chroot(own, kbl, interpreter, failure) && make_it_the_root(failure);
	close_all((int[]){kbl, interpreter, ready ? -1 : own}, 3);
	if (ready)
		return own;
	undo();
	return -1;
}

bool mount_kernel_filesystems(void)
{
	struct failure failure;
	if (mount_all(basic_mounts, 3, &failure))
		return true;
	agent_log("cannot %s: %s", failure.step, strerror(failure.number));
	return false;
}
