/* prepare: an empty guest gets its root. identify: a guest with a root becomes who it is to be, whoever it was before: at
 * a cold boot nobody, in a fork its parent. Each item is set and read back, and what is confirmed is told to the host. The
 * invariant: in a fork, user processes stand still until every item before `thawed` is confirmed. */
#define _GNU_SOURCE
#include "agent.h"
#include "bootid.h"
#include "calls.h"
#include "data.h"
#include "etc.h"
#include "group.h"
#include "network.h"
#include "rootfs.h"
#include "secrets.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { ENTROPY_MAX = 512 };

/* A busy host may let a processor stand for seconds between setting the clock and reading it back. */
static const int64_t CLOCK_STALL_NS = 60LL * 1000000000;

static bool outcome(struct failure *failure, int error, const char *step)
{
	return error == 0 || fail(failure, error, "%s", step);
}

/* ---- the items ---- */

static int64_t wall_clock_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static bool set_clock(const struct params *params, struct failure *failure)
{
	long long wall_ns = params_number(params, "wall_ns", 1, INT64_MAX, 0);
	struct timespec now = {.tv_sec = wall_ns / 1000000000, .tv_nsec = wall_ns % 1000000000};
	if (wall_ns == 0)
		return fail(failure, EINVAL, "clock");
	if (agent.hosted_root)
		return true; /* it is the host's clock */
	if (clock_settime(CLOCK_REALTIME, &now) != 0)
		return fail(failure, errno, "clock");
	int64_t since_ns = wall_clock_ns() - wall_ns;
	return (since_ns >= 0 && since_ns < CLOCK_STALL_NS) || fail(failure, EIO, "clock read back");
}

static int add_entropy(const char *hex)
{
	struct {
		struct rand_pool_info info;
		uint8_t bytes[ENTROPY_MAX];
	} pool;
	long size = hex_decode(hex, strlen(hex), pool.bytes);
	if (size < 16)
		return EINVAL;
	pool.info.buf_size = (int)size;
	pool.info.entropy_count = (int)size * 8;
	static int generator = -1; /* stays open, for to open it once more costs each fork a millisecond */
	if (generator < 0)
		generator = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	if (generator < 0)
		return errno;
	int error = ioctl(generator, RNDADDENTROPY, &pool) == 0 && ioctl(generator, RNDRESEEDCRNG) == 0 ? 0 : errno;
	explicit_bzero(&pool, sizeof pool);
	return error;
}

/* Credit the host's bytes and make the generator take them in at once, so that nothing is drawn from its old state. */
static bool set_entropy(const struct params *params, struct failure *failure)
{
	uint8_t drawn[16];
	const char *hex = params_get(params, "entropy");
	int error = hex == NULL || strlen(hex) > 2 * ENTROPY_MAX ? EINVAL : add_entropy(hex);
	if (!error && getrandom(drawn, sizeof drawn, GRND_NONBLOCK) != sizeof drawn)
		error = EIO;
	return outcome(failure, error, "entropy");
}

static bool set_hostname(const struct params *params, struct failure *failure)
{
	char found[256] = "";
	const char *name = params_get(params, "hostname");
	if (name == NULL || *name == 0)
		return fail(failure, EINVAL, "hostname");
	if (sethostname(name, strlen(name)) != 0 || gethostname(found, sizeof found - 1) != 0)
		return fail(failure, errno, "hostname");
	return strcmp(name, found) == 0 || fail(failure, EIO, "hostname read back");
}

static bool set_machine_id(const struct params *params, struct failure *failure)
{
	return outcome(failure, etc_write_machine_id(params), "write /etc/machine-id");
}

static bool set_boot_id(const struct params *params, struct failure *failure)
{
	(void)params;
	return outcome(failure, boot_id_renew(), "boot id");
}

static bool set_network(const struct params *params, struct failure *failure)
{
	const char *step = "";
	int error = network_replace(params, &step);
	return outcome(failure, error, step);
}

static bool set_names(const struct params *params, struct failure *failure)
{
	const char *file = "";
	int error = etc_write_names(params, &file);
	return error == 0 || fail(failure, error, "write %s", file);
}

static bool set_thawed(const struct params *params, struct failure *failure)
{
	(void)params;
	return outcome(failure, group_thaw(), "thaw");
}

static const struct item {
	const char *name;
	bool (*set)(const struct params *params, struct failure *failure);
	const char *only_with; /* a parameter without which there is nothing to do, and nothing to tell */
} items[] = {
	{"clock", set_clock, NULL},
	{"entropy", set_entropy, NULL},
	{"hostname", set_hostname, NULL},
	{"machine-id", set_machine_id, NULL},
	{"boot-id", set_boot_id, NULL},
	{"network", set_network, NULL},
	{"names", set_names, NULL},
	{"secrets", secrets_replace, NULL},
	{"mounts", data_mounts, "mount"},
	{"thawed", set_thawed, NULL},
};

/* ---- the calls ---- */

static int64_t now_us(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static bool is_set(const struct params *params, const char *key)
{
	return params_number(params, key, 0, 1, 0) == 1;
}

/* `rehearsal`: for a fork that nobody has claimed yet all is set and read back, so that the way is warm, and nobody is let
 * go. `hold`: nobody is let go before the host says `release`. */
static bool stops_short(const struct params *params)
{
	return is_set(params, "rehearsal") || is_set(params, "hold");
}

static bool held; /* all is confirmed but the last, which waits for `release` */

/* Set them all, or up to the first that fails; says what was confirmed and what it took. */
static bool set_items(const struct params *params, struct answer *answer, struct failure *failure)
{
	for (size_t i = 0; i < sizeof items / sizeof *items; i++) {
		if (items[i].only_with && params_get(params, items[i].only_with) == NULL)
			continue;
		if (items[i].set == set_thawed && stops_short(params))
			continue;
		int64_t begin_us = now_us();
		if (!items[i].set(params, failure))
			return false;
		answer_number(answer, "ok_", items[i].name, (unsigned long)(now_us() - begin_us));
	}
	return true;
}

void identify_open(uint32_t id, const struct params *params)
{
	struct failure failure = {0};
	struct answer answer = {0};
	held = false;
	if (!set_items(params, &answer, &failure)) {
		call_refused(id, failure.number, "identify: %s", failure.step);
		return;
	}
	if (is_set(params, "rehearsal"))
		group_rehearse();
	agent.configured = agent.configured || !stops_short(params);
	held = is_set(params, "hold");
	answer_hex(&answer, "boot_id", boot_id(), 16);
	if (stops_short(params))
		call_done(id, &answer);
	else
		hooks_run(id, params, &answer);
}

void release_open(uint32_t id, const struct params *params)
{
	struct answer answer = {0};
	int64_t begin_us = now_us();
	int error = held ? group_thaw() : EINVAL;
	if (error) {
		call_refused(id, error, held ? "identify: thaw" : "nothing is held");
		return;
	}
	held = false;
	agent.configured = true;
	answer_number(&answer, "ok_", "thawed", (unsigned long)(now_us() - begin_us));
	hooks_run(id, params, &answer);
}

void clock_open(uint32_t id, const struct params *params)
{
	struct failure failure = {0};
	if (set_clock(params, &failure))
		call_done(id, NULL);
	else
		call_refused(id, failure.number, "%s", failure.step);
}

static bool prepare(const struct params *params, struct failure *failure)
{
	const char *step = "";
	int error = network_prepare(&step);
	if (error)
		return fail(failure, error, "%s", step);
	int own = rootfs_enter(params, failure);
	if (own < 0)
		return false;
	secrets_start(own);
	listeners_start();
	agent.prepared = true;
	return true;
}

void prepare_open(uint32_t id, const struct params *params)
{
	struct failure failure = {0};
	if (agent.configured)
		call_refused(id, EALREADY, "the guest was configured before");
	else if (!agent.prepared && !prepare(params, &failure))
		call_refused(id, failure.number, "prepare: %s", failure.step);
	else
		call_done(id, NULL);
}

void hosts_open(uint32_t id, const struct params *params)
{
	int error = etc_write_hosts(params);
	if (error)
		call_refused(id, error, "cannot write /etc/hosts");
	else
		call_done(id, NULL);
}
