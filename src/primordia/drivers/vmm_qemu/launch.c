/* The few steps between fork and QEMU: enter the cgroups, close what is not meant for it, give up every privilege, become it.
 *
 *     LAUNCH_TELL=DESCRIPTOR launch OOM_SCORE_ADJ DESCRIPTOR,... OWNER CGROUP_PROCS_FILE... -- PROGRAM ARGUMENT...
 *
 * The process is in its cgroups before it is QEMU, so that there is no instant at which QEMU runs outside them, not even when
 * the daemon dies in between. It becomes uid and gid OWNER, in no group, with no capability and no way to gain one
 * (capabilities(7)). A static program of its own, for its start is part of every microVM's: Python and setpriv took ten times
 * as long.
 *
 * Whoever moves a process from one cgroup to another waits for all processors to pass through the scheduler: 10 to 15 ms. Two
 * ways spare that: to be born into a cgroup (v2: clone3(2) with CLONE_INTO_CGROUP), and to move one's own thread alone (v1: a 0
 * written to `tasks`). So where there is a v2 cgroup a child is born into it, as a sibling (CLONE_PARENT): whoever started this
 * is told its pid, in decimal digits, by the descriptor in LAUNCH_TELL, and this process ends. Where nothing is told before
 * the descriptor is closed, the process goes on as the one that was started.
 *
 * Says why not on standard error and exits with 97.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { CANNOT = 97, MOST_DESCRIPTORS = 256 };

static void fail(const char *what)
{
    dprintf(STDERR_FILENO, "launch: %s: %s\n", what, strerror(errno));
    exit(CANNOT);
}

/* A decimal number that fills the text, or the end. */
static unsigned long number_of(const char *text, char **rest)
{
    errno = 0;
    unsigned long number = strtoul(text, rest, 10);
    if (errno || *rest == text || number > INT_MAX) {
        errno = EINVAL;
        fail(text);
    }
    return number;
}

static void put(const char *file, const char *text)
{
    int descriptor = open(file, O_WRONLY | O_CLOEXEC);
    if (descriptor < 0 || write(descriptor, text, strlen(text)) < 0 || close(descriptor) < 0)
        fail(file);
}

/* Another file of the same cgroup, or its folder ("."). */
static void sibling_of(const char *file, const char *name, char path[PATH_MAX])
{
    const char *slash = strrchr(file, '/');
    int length = slash ? (int)(slash - file) + 1 : 0;
    if (snprintf(path, PATH_MAX, "%.*s%s", length, file, name) >= PATH_MAX) {
        errno = ENAMETOOLONG;
        fail(file);
    }
}

static int is_on(const char *file, unsigned long file_system)
{
    struct statfs found;
    return statfs(file, &found) == 0 && (unsigned long)found.f_type == file_system;
}

/* Go on in a child that is born into that cgroup, and end. Returns in the child: whether it was; and where it cannot be. */
static int born_into(const char *file, int tell)
{
    char path[PATH_MAX], digits[24];
    sibling_of(file, ".", path);
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return 0;
    struct clone_args arguments = {.flags = CLONE_PARENT | CLONE_INTO_CGROUP, .cgroup = (uint64_t)folder};
    pid_t child = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    if (child > 0) {
        int length = snprintf(digits, sizeof digits, "%d", child);
        signal(SIGPIPE, SIG_IGN); /* nobody may be left to be told: then nothing is left */
        if (write(tell, digits, length) != length)
            kill(child, SIGKILL);
        exit(0);
    }
    close(folder);
    return child == 0;
}

static void enter(const char *file)
{
    char path[PATH_MAX], pid[24];
    snprintf(pid, sizeof pid, "%d", getpid());
    if (is_on(file, CGROUP_SUPER_MAGIC)) {
        sibling_of(file, "tasks", path);
        put(path, "0");
    } else
        put(file, pid);
}

/* At most one is a v2 cgroup: there is one such hierarchy. */
static void enter_all(char **files, int count)
{
    const char *told = getenv("LAUNCH_TELL");
    char *rest;
    int tell = told ? (int)number_of(told, &rest) : -1, born = -1;
    unsetenv("LAUNCH_TELL");
    for (int each = 0; tell >= 0 && each < count && born < 0; each++)
        if (is_on(files[each], CGROUP2_SUPER_MAGIC) && born_into(files[each], tell))
            born = each;
    for (int each = 0; each < count; each++)
        if (each != born)
            enter(files[each]);
}

static int by_number(const void *one, const void *other)
{
    return *(const int *)one - *(const int *)other;
}

static void close_from_to(unsigned first, unsigned last)
{
    if (first <= last && syscall(SYS_close_range, first, last, 0) != 0)
        fail("close_range");
}

/* Close every descriptor above standard error that is not in the list, whoever left it open. */
static void close_all_but(char *list)
{
    int kept[MOST_DESCRIPTORS];
    size_t count = 0;
    for (char *at = list; *at && count < MOST_DESCRIPTORS; at += *at == ',')
        kept[count++] = (int)number_of(at, &at);
    qsort(kept, count, sizeof kept[0], by_number);
    unsigned next = STDERR_FILENO + 1;
    for (size_t each = 0; each < count; each++) {
        if ((unsigned)kept[each] > next)
            close_from_to(next, (unsigned)kept[each] - 1);
        if ((unsigned)kept[each] >= next)
            next = (unsigned)kept[each] + 1;
    }
    close_from_to(next, UINT_MAX);
}

/* In this order: what takes a capability comes before it is gone. */
static void give_up(const char *owner)
{
    char *rest;
    unsigned long id = number_of(owner, &rest);
    if (*rest || !id) {
        errno = EINVAL;
        fail(owner);
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        fail("no new privileges");
    for (int capability = 0; capability <= CAP_LAST_CAP || prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 && errno != EINVAL)
            fail("bounding set");
    if (setgroups(0, NULL) != 0 || setresgid(id, id, id) != 0 || setresuid(id, id, id) != 0)
        fail("user and group");
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}};
    if (syscall(SYS_capset, &header, none) != 0)
        fail("capabilities");
}

int main(int count, char **words)
{
    int split = 4;
    while (split < count && strcmp(words[split], "--") != 0)
        split++;
    if (split + 1 >= count) {
        dprintf(STDERR_FILENO, "launch: no program is named\n");
        return CANNOT;
    }
    enter_all(words + 4, split - 4);
    put("/proc/self/oom_score_adj", words[1]);
    close_all_but(words[2]);
    const struct rlimit no_core = {0, 0};
    if (setrlimit(RLIMIT_CORE, &no_core) != 0)
        fail("core");
    give_up(words[3]);
    execv(words[split + 1], words + split + 1);
    fail(words[split + 1]);
}
