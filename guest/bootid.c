#define _GNU_SOURCE
#include "bootid.h"

#include "frame.h"
#include "loop.h"
#include "params.h"
#include "rootfs.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define KERNELS_OWN "/proc/sys/kernel/random/boot_id"

enum { TEXT = 37 }; /* as the kernel writes it, with the newline */

static uint8_t id[16], host_nonce[16];
static bool chosen;
static int file = -1; /* kept open: what is bound over the kernel's is this very file */
static dev_t device;
static ino_t inode;

const uint8_t *boot_id(void)
{
	return id;
}

/* Mixed with the host's nonce it is unique even where entropy is scarce. */
static void choose(void)
{
	if (getrandom(id, sizeof id, GRND_NONBLOCK | GRND_INSECURE) < 0)
		put_u64(id, (uint64_t)now_ms());
	for (size_t i = 0; i < sizeof id; i++)
		id[i] ^= host_nonce[i];
	id[6] = 0x40 | (id[6] & 0x0f);
	id[8] = 0x80 | (id[8] & 0x3f);
	chosen = true;
}

void boot_id_greeted(const uint8_t nonce[16])
{
	memcpy(host_nonce, nonce, sizeof host_nonce);
	if (!chosen)
		choose();
}

static void print_id(char text[TEXT + 1])
{
	for (size_t i = 0; i < sizeof id; i++) {
		text = hex_encode(text, &id[i], 1);
		if (i == 3 || i == 5 || i == 7 || i == 9)
			*text++ = '-';
	}
	text[0] = '\n';
	text[1] = 0;
}

static int publish(void)
{
	char text[TEXT + 1];
	print_id(text);
	return pwrite(file, text, TEXT, 0) == TEXT ? 0 : errno;
}

int boot_id_cover(int folder)
{
	if (file >= 0)
		close(file);
	struct stat status;
	file = openat(folder, "boot_id", O_RDWR | O_CREAT | O_CLOEXEC, 0444);
	if (file < 0 || fstat(file, &status) != 0)
		return errno;
	device = status.st_dev;
	inode = status.st_ino;
	int error = publish();
	int tree = error ? -1 : open_tree(folder, "boot_id", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	struct mount_attr attributes = {.attr_set = MOUNT_ATTR_RDONLY};
	if (!error && (tree < 0 || mount_setattr(tree, "", AT_EMPTY_PATH, &attributes, sizeof attributes) != 0 ||
	               move_mount(tree, "", AT_FDCWD, KERNELS_OWN, MOVE_MOUNT_F_EMPTY_PATH) != 0))
		error = errno;
	if (tree >= 0)
		close(tree);
	return error;
}

/* What programs read there is this very file: to look is cheaper for a fork than to open it. */
static bool is_read_there(void)
{
	struct stat status;
	return lstat(KERNELS_OWN, &status) == 0 && status.st_dev == device && status.st_ino == inode;
}

int boot_id_renew(void)
{
	char wanted[TEXT + 1], found[TEXT + 1] = "";
	choose();
	int error = publish();
	if (error)
		return error;
	print_id(wanted);
	bool same = pread(file, found, TEXT, 0) == TEXT && strcmp(found, wanted) == 0;
	return same && is_read_there() ? 0 : EIO;
}
