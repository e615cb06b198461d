#define _GNU_SOURCE
#include "hosted.h"

#include "agent.h"
#include "channel.h"
#include "loop.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define STAGE "/mnt"
#define ROOT "/root"

/* Each connection stands for a host that opens the port. The newest wins. */
static void on_host(struct source *source, uint32_t events)
{
	(void)events;
	for (int fd; (fd = accept4(source->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;)
		channel_start(fd);
}

static bool make_devices(const char *folder)
{
	static const struct {
		const char *name;
		unsigned major, minor;
	} devices[] = {{"null", 1, 3}, {"zero", 1, 5}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}, {"ptmx", 5, 2}};
	if (mount("tmpfs", folder, "tmpfs", MS_NOSUID, "mode=0755") != 0 || chdir(folder) != 0)
		return false;
	for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
		if (mknod(devices[i].name, S_IFCHR | 0666, makedev(devices[i].major, devices[i].minor)) != 0 ||
		    chmod(devices[i].name, 0666) != 0)
			return false;
	return true;
}

/* A stage like our initramfs: empty folders, /proc, /dev, and the root to be. */
static bool build_stage(const char *root)
{
	return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 && mount("tmpfs", STAGE, "tmpfs", 0, NULL) == 0 &&
	       mkdir(STAGE ROOT, 0755) == 0 && mkdir(STAGE "/proc", 0755) == 0 && mkdir(STAGE "/dev", 0755) == 0 &&
	       mount(root, STAGE ROOT, NULL, MS_BIND, NULL) == 0 && make_devices(STAGE ROOT "/dev") &&
	       mount(STAGE ROOT "/dev", STAGE "/dev", NULL, MS_BIND, NULL) == 0 &&
	       mount("proc", STAGE "/proc", "proc", 0, NULL) == 0 && chroot(STAGE) == 0 && chdir("/") == 0;
}

bool hosted_start(int listener, const char *root)
{
	static struct source source;
	if (!build_stage(root)) {
		agent_log("cannot build the stage: %s", strerror(errno));
		return false;
	}
	agent.hosted_root = ROOT;
	return fcntl(listener, F_SETFL, O_NONBLOCK) == 0 && fcntl(listener, F_SETFD, FD_CLOEXEC) == 0 &&
	       source_add(&source, listener, on_host);
}
