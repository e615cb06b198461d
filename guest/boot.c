#define _GNU_SOURCE
#include "boot.h"

#include "agent.h"
#include "rootfs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#if defined(__x86_64__)
#include <sys/io.h>
#endif
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PORT_NAME "primordia.agent"

enum { LOOK_OFTEN_MS = 5, LOOK_SELDOM_MS = 200, COMPLAIN_MS = 5000 };

void boot_stdio(void)
{
	int null = open("/dev/null", O_RDWR);
	int log = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	dup2(null, 0);
	dup2(null, 1);
	dup2(log >= 0 ? log : null, 2);
	if (null > 2)
		close(null);
	if (log > 2)
		close(log);
}

/* The kernel calibrates its only timer, the local APIC's, against the time-stamp counter. On a host so busy that the
 * processor stood still meanwhile it finds "APIC frequency too slow" and goes without: then nobody who sleeps ever wakes. */
static bool has_timer(void)
{
	char device[64] = "\n";
	FILE *file = fopen("/sys/devices/system/clockevents/clockevent0/current_device", "re");
	if (file == NULL)
		return true; /* this kernel does not tell */
	char *line = fgets(device, sizeof device, file);
	fclose(file);
	return line != NULL && *line != '\n';
}

static void insist_on_a_timer(void)
{
	if (has_timer())
		return;
	agent_log("the kernel has found no timer that works; starting again");
	reboot(RB_AUTOBOOT);
}

/* Looking twice a second whether memory needs compacting is a third of what an idle guest does. Not told on the kernel's
 * command line, where the kernel waits for its timer meanwhile, which it may not have. */
static void calm_the_kernel(void)
{
	int fd = open("/proc/sys/vm/compaction_proactiveness", O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return; /* kernels before 5.9 do not look */
	if (write(fd, "0", 1) != 1)
		agent_log("cannot still the compaction of memory: %s", strerror(errno));
	close(fd);
}

static bool is_used(const char *timers, const char *name)
{
	char path[128], device[64] = "?\n";
	snprintf(path, sizeof path, "/sys/devices/system/clockevents/%s/current_device", timers);
	FILE *file = fopen(path, "re");
	if (file == NULL)
		return false;
	char *line = fgets(device, sizeof device, file);
	fclose(file);
	return line != NULL && strncmp(device, name, strlen(name)) == 0;
}

/* The machine comes with its old interval timer (Intel 8254) running, and a kernel that finds a better one leaves it so:
 * QEMU wakes 36 times a second for nobody. Stopped as the kernel's own driver does, with mode 0 and no count to go for. */
static void stop_the_old_timer(void)
{
#if defined(__x86_64__)
	enum { CHANNEL_0 = 0x40, MODE = 0x43, LOW_THEN_HIGH_ONCE = 0x30 };
	if (is_used("clockevent0", "pit") || is_used("broadcast", "pit") || !is_used("clockevent0", "lapic"))
		return;
	if (ioperm(CHANNEL_0, MODE - CHANNEL_0 + 1, 1) != 0)
		return; /* a kernel that is locked down keeps it */
	outb(LOW_THEN_HIGH_ONCE, MODE);
	outb(0, CHANNEL_0);
	outb(0, CHANNEL_0);
	ioperm(CHANNEL_0, MODE - CHANNEL_0 + 1, 0);
#endif
}

static void load_module(const char *name)
{
	char path[300];
	const char *suffix = strchr(name, '.') ? "" : ".ko";
	snprintf(path, sizeof path, "%s%s%s", *name == '/' ? "" : "/modules/", name, suffix);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return; /* built into this kernel */
	if (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST)
		agent_log("cannot load %s: %s", path, strerror(errno));
	close(fd);
	unlink(path); /* its memory is the guest's */
}

static void load_modules(void)
{
	char line[256];
	FILE *list = fopen("/modules.list", "re");
	if (list == NULL)
		return;
	while (fgets(line, sizeof line, list)) {
		line[strcspn(line, " \t\r\n")] = 0;
		if (*line && *line != '#')
			load_module(line);
	}
	fclose(list);
}

static bool port_is_ours(const char *port)
{
	char path[300], name[64] = "";
	snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", port);
	FILE *file = fopen(path, "re");
	if (file == NULL)
		return false;
	bool known = fgets(name, sizeof name, file) != NULL;
	fclose(file);
	name[strcspn(name, "\n")] = 0;
	return known && strcmp(name, PORT_NAME) == 0;
}

static int open_port(void)
{
	char path[300];
	int fd = -1;
	DIR *ports = opendir("/sys/class/virtio-ports");
	for (struct dirent *entry; ports && fd < 0 && (entry = readdir(ports));)
		if (entry->d_name[0] != '.' && port_is_ours(entry->d_name)) {
			snprintf(path, sizeof path, "/dev/%s", entry->d_name);
			fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
		}
	if (ports)
		closedir(ports);
	return fd;
}

int boot(void)
{
	mount_kernel_filesystems();
	boot_stdio();
	insist_on_a_timer();
	calm_the_kernel();
	stop_the_old_timer();
	load_modules();
	int fd, waited = 0;
	while ((fd = open_port()) < 0) {
		int pause_ms = waited < COMPLAIN_MS ? LOOK_OFTEN_MS : LOOK_SELDOM_MS;
		usleep(pause_ms * 1000);
		if (waited < COMPLAIN_MS && waited + pause_ms >= COMPLAIN_MS)
			agent_log("there is no port named " PORT_NAME "; still looking");
		waited += pause_ms;
	}
	return fd;
}
