/* The guest of the VMM driver's own tests: PID 1 that loads the modules of /modules.list and obeys lines on the agent's
 * byte channel. It stands for the real agent, whose protocol the driver must not know. One answer line for each command:
 *   ping | count | keep TEXT | kept | fill MIB SEED | sum | cpus | memory | drives | network | read ID | write ID TEXT | console N | poweroff | reboot | panic
 * Static, no libc beyond what gcc -static gives; anything that fails ends in a kernel panic, which the tests see. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

static char line[4096], text[4096], kept[1024];
static int counted;

static ssize_t slurp(const char *path, char *into, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t count = read(fd, into, size - 1);
    close(fd);
    if (count < 0) return -1;
    while (count > 0 && into[count - 1] == '\n') count--;
    into[count] = 0;
    return count;
}

static void spit(const char *path, const char *what) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    if (write(fd, what, strlen(what)) < 0) perror(path);
    close(fd);
}

static void load_modules(void) {
    FILE *list = fopen("/modules.list", "re");
    char name[256];
    while (list && fgets(name, sizeof name, list)) {
        char path[300];
        name[strcspn(name, "\n")] = 0;
        snprintf(path, sizeof path, "/modules/%s", name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) != 0) perror(name);
        if (fd >= 0) close(fd);
    }
    if (list) fclose(list);
}

static int open_channel(void) {
    for (int attempt = 0; attempt < 10000; attempt++) {
        DIR *ports = opendir("/sys/class/virtio-ports");
        struct dirent *entry;
        while (ports && (entry = readdir(ports))) {
            char path[600], name[64] = "";
            snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
            if (slurp(path, name, sizeof name) > 0 && strcmp(name, "primordia.agent") == 0) {
                snprintf(path, sizeof path, "/dev/%s", entry->d_name);
                int fd = open(path, O_RDWR | O_CLOEXEC);
                if (fd >= 0) {
                    closedir(ports);
                    return fd;
                }
            }
        }
        if (ports) closedir(ports);
        usleep(1000);
    }
    return -1;
}

/* The block device whose serial is `serial`, in `path`. */
static int find_drive(const char *serial, char *path, size_t size) {
    for (char letter = 'a'; letter <= 'z'; letter++) {
        char file[64], found[64] = "";
        snprintf(file, sizeof file, "/sys/block/vd%c/serial", letter);
        if (slurp(file, found, sizeof found) >= 0 && strcmp(found, serial) == 0) {
            snprintf(path, size, "/dev/vd%c", letter);
            return 0;
        }
    }
    return -1;
}

static void list_drives(void) {
    text[0] = 0;
    for (char letter = 'a'; letter <= 'z'; letter++) {
        char file[64], serial[64] = "", sectors[32] = "", read_only[8] = "";
        snprintf(file, sizeof file, "/sys/block/vd%c/serial", letter);
        if (slurp(file, serial, sizeof serial) < 0) break;
        snprintf(file, sizeof file, "/sys/block/vd%c/size", letter);
        slurp(file, sectors, sizeof sectors);
        snprintf(file, sizeof file, "/sys/block/vd%c/ro", letter);
        slurp(file, read_only, sizeof read_only);
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, "%s:%s:%s ", serial, sectors, read_only);
    }
}

static void read_drive(const char *serial) {
    char path[32];
    int fd = find_drive(serial, path, sizeof path) == 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    ssize_t count = fd >= 0 ? read(fd, text, 512) : -1;
    text[count > 0 ? count : 0] = 0;
    if (count < 0) strcpy(text, "error");
    if (fd >= 0) close(fd);
}

static void write_drive(char *argument) {
    char path[32];
    char *content = strchr(argument, ' ');
    if (content) *content++ = 0;
    int fd = content && find_drive(argument, path, sizeof path) == 0 ? open(path, O_WRONLY | O_CLOEXEC) : -1;
    char block[512] = "";
    if (content) strncpy(block, content, sizeof block - 1);
    int good = fd >= 0 && write(fd, block, sizeof block) == sizeof block && fsync(fd) == 0;
    strcpy(text, good ? "ok" : "error");
    if (fd >= 0) close(fd);
}

/* Fill the kernel's console with N lines, as a hostile guest would. */
static void flood_console(long lines) {
    spit("/proc/sys/kernel/printk", "8 8 8 8\n");
    spit("/proc/sys/kernel/printk_devkmsg", "on\n");
    int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
    long written = 0;
    for (long i = 0; i < lines; i++) {
        int size = snprintf(text, sizeof text, "<0>flood %ld %0200d\n", i, 0);
        written += write(fd, text, size) == size;
    }
    if (fd >= 0) close(fd);
    snprintf(text, sizeof text, "%ld", written);
}

/* Memory with no two pages alike. The first fill decides how much there is; later ones may fill the beginning of it. */
static unsigned char *filled;
static size_t filled_size;

static void fill(long mebibytes, long seed) {
    size_t size = (size_t)mebibytes << 20;
    if (!filled) {
        filled = malloc(size);
        filled_size = size;
    }
    for (size_t place = 0; filled && place + 4096 <= filled_size && place < size; place += 4096) {
        memset(filled + place, seed & 255, 4096);
        *(unsigned long *)(filled + place) = place * 31 + seed;
    }
    strcpy(text, filled ? "ok" : "error");
}

static void sum(void) {
    unsigned long value = 1469598103934665603UL;
    for (size_t place = 0; filled && place + 8 <= filled_size; place += 8)
        value = (value ^ *(unsigned long *)(filled + place)) * 1099511628211UL;
    snprintf(text, sizeof text, "%016lx", value);
}

static void network(void) {
    char mac[32] = "none";
    slurp("/sys/class/net/eth0/address", mac, sizeof mac);
    snprintf(text, sizeof text, "%s", mac);
}

static void obey(char *command) {
    char *argument = strchr(command, ' ');
    if (argument) *argument++ = 0;
    else argument = command + strlen(command);
    strcpy(text, "what?");
    if (!strcmp(command, "ping")) strcpy(text, "pong");
    else if (!strcmp(command, "count")) snprintf(text, sizeof text, "%d", ++counted);
    else if (!strcmp(command, "keep")) {
        snprintf(kept, sizeof kept, "%s", argument);
        strcpy(text, "ok");
    } else if (!strcmp(command, "kept")) strcpy(text, kept);
    else if (!strcmp(command, "fill")) fill(atol(argument), strchr(argument, ' ') ? atol(strchr(argument, ' ')) : 0);
    else if (!strcmp(command, "sum")) sum();
    else if (!strcmp(command, "cpus")) snprintf(text, sizeof text, "%d", get_nprocs());
    else if (!strcmp(command, "memory")) {
        struct sysinfo info;
        sysinfo(&info);
        snprintf(text, sizeof text, "%lu", info.totalram * info.mem_unit);
    } else if (!strcmp(command, "drives")) list_drives();
    else if (!strcmp(command, "network")) network();
    else if (!strcmp(command, "read")) read_drive(argument);
    else if (!strcmp(command, "write")) write_drive(argument);
    else if (!strcmp(command, "console")) flood_console(atol(argument));
    else if (!strcmp(command, "poweroff")) reboot(RB_POWER_OFF);
    else if (!strcmp(command, "reboot")) reboot(RB_AUTOBOOT);
    else if (!strcmp(command, "panic")) {
        spit("/proc/sys/kernel/sysrq", "1");
        spit("/proc/sysrq-trigger", "c");
    }
}

/* With a drive named `again` that holds `start again`: do so, before anybody can see that the guest is up. */
static void start_again_once(void) {
    char wish[] = "again done";
    strcpy(line, "again");
    read_drive(line);
    if (strcmp(text, "start again")) return;
    write_drive(wish);
    reboot(RB_AUTOBOOT);
}

int main(void) {
    mount("proc", "/proc", "proc", 0, "");
    mount("sysfs", "/sys", "sysfs", 0, "");
    mount("devtmpfs", "/dev", "devtmpfs", 0, "");
    load_modules();
    start_again_once();
    int channel = open_channel();
    if (channel < 0) return 1;
    size_t used = 0;
    for (;;) {
        ssize_t count = read(channel, line + used, sizeof line - 1 - used);
        if (count <= 0) { /* nobody is connected */
            used = 0;
            usleep(2000);
            continue;
        }
        used += count;
        line[used] = 0;
        char *end;
        while ((end = strchr(line, '\n'))) {
            *end = 0;
            obey(line);
            strcat(text, "\n");
            if (write(channel, text, strlen(text)) < 0) perror("channel");
            used -= end + 1 - line;
            memmove(line, end + 1, used + 1);
        }
        if (used == sizeof line - 1) used = 0;
    }
}
