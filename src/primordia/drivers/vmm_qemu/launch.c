/* The few steps between fork and QEMU: enter the cgroups, close what is not meant for it, give up every privilege, become it.
 *
 *     launch OOM_SCORE_ADJ DESCRIPTOR,... OWNER CGROUP_PROCS_FILE... -- PROGRAM ARGUMENT...
 *
 * The process enters its cgroups itself, so that there is no instant at which QEMU runs outside them, not even when the daemon
 * dies in between. It becomes uid and gid OWNER, in no group, with no capability and no way to gain one (capabilities(7)).
 * A static program of its own, for its start is part of every microVM's: Python and setpriv took ten times as long.
 *
 * Says why not on standard error and exits with 97.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
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
    char pid[24];
    snprintf(pid, sizeof pid, "%d", getpid());
    for (int group = 4; group < split; group++)
        put(words[group], pid);
    put("/proc/self/oom_score_adj", words[1]);
    close_all_but(words[2]);
    const struct rlimit no_core = {0, 0};
    if (setrlimit(RLIMIT_CORE, &no_core) != 0)
        fail("core");
    give_up(words[3]);
    execv(words[split + 1], words + split + 1);
    fail(words[split + 1]);
}
