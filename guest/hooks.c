/* Post-fork hooks: programs of the image that renew what only user space knows, as the state of its random generators.
 * They run one after the other; the caller's patience is their deadline, for when it goes they are hung up. */
#define _GNU_SOURCE
#include "calls.h"
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TAIL = 300 };

struct hooks {
	struct stream stream;
	struct child child;
	struct answer confirmed;
	char *data; /* of our own: the decoded parameters of each hook, one after the other */
	struct params all, hook;
	const char *value; /* the `hook` parameter that runs now */
	int output;        /* a file in memory: what the hook wrote */
};

static void next_hook(struct hooks *hooks);

static void finish(struct hooks *hooks)
{
	answer_add(&hooks->confirmed, "ok_hooks", "0");
	hooks->stream.answer = hooks->confirmed;
	stream_close(&hooks->stream);
}

static void fail_hook(struct hooks *hooks, int error, const char *what)
{
	const char *name = params_get(&hooks->hook, "argv");
	answer_error(&hooks->stream.answer, error, "identify: hook %.100s %.400s", name ? name : "", what);
	stream_refuse(&hooks->stream);
}

static void drop_output(struct hooks *hooks)
{
	if (hooks->output >= 0)
		close(hooks->output);
	hooks->output = -1;
}

static void on_gone(struct stream *stream, bool by_host)
{
	struct hooks *hooks = OWNER(stream, struct hooks, stream);
	(void)by_host;
	child_abandon(&hooks->child); /* nothing to do when it has ended */
	drop_output(hooks);
	if (hooks->all.data)
		explicit_bzero((char *)hooks->all.data, hooks->all.size); /* secrets are among them */
	free((char *)hooks->all.data);
	free(hooks->data);
	loop_free(hooks);
}

static const struct stream_ops hooks_ops = {.on_gone = on_gone};

static void on_started(struct child *child, int error, const char *what)
{
	if (error)
		fail_hook(OWNER(child, struct hooks, child), error, what);
}

static void tell_failure(struct hooks *hooks, int wait_status)
{
	char said[TAIL + 1] = "", text[TAIL + 64];
	off_t size = lseek(hooks->output, 0, SEEK_END);
	ssize_t count = pread(hooks->output, said, TAIL, size > TAIL ? size - TAIL : 0);
	while (count > 0 && (said[count - 1] == '\n' || said[count - 1] == 0))
		count--;
	said[count > 0 ? count : 0] = 0;
	if (WIFEXITED(wait_status))
		snprintf(text, sizeof text, "ended with code %d: %s", WEXITSTATUS(wait_status), said);
	else
		snprintf(text, sizeof text, "was killed by signal %d: %s", WTERMSIG(wait_status), said);
	fail_hook(hooks, ECANCELED, text);
}

static void on_ended(struct child *child, int wait_status)
{
	struct hooks *hooks = OWNER(child, struct hooks, child);
	child->pid = 0;
	if (wait_status)
		tell_failure(hooks, wait_status);
	else
		next_hook(hooks);
}

static int run(struct hooks *hooks, char **argv, char **env)
{
	const char *cwd = params_get(&hooks->hook, "cwd"), *user = params_get(&hooks->hook, "user");
	struct spawn spawn = {.argv = argv, .env = env, .cwd = cwd ? cwd : "", .user = user ? user : ""};
	if (argv == NULL || env == NULL || argv[0] == NULL)
		return EINVAL;
	hooks->output = memfd_create("hook", MFD_CLOEXEC);
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	int copy = fcntl(hooks->output, F_DUPFD_CLOEXEC, 3);
	memcpy(spawn.stdio, (int[]){null, hooks->output, copy}, sizeof spawn.stdio);
	hooks->child = (struct child){.on_started = on_started, .on_exit = on_ended, .report.fd = -1};
	int error = null < 0 || copy < 0 ? errno : child_spawn(&hooks->child, &spawn);
	close_all((int[]){null, copy}, 2);
	return error;
}

/* HEX of parameters as those of start_main. */
static bool decode(struct hooks *hooks)
{
	size_t digits = strlen(hooks->value);
	free(hooks->data);
	hooks->data = malloc(digits / 2 + 1);
	long size = hooks->data ? hex_decode(hooks->value, digits, (uint8_t *)hooks->data) : -1;
	hooks->hook = (struct params){hooks->data, size < 0 ? 0 : (size_t)size};
	return size >= 0 && params_valid(&hooks->hook);
}

static void next_hook(struct hooks *hooks)
{
	drop_output(hooks);
	hooks->value = params_next(&hooks->all, "hook", hooks->value);
	if (hooks->value == NULL) {
		finish(hooks);
		return;
	}
	if (!decode(hooks)) {
		hooks->hook.size = 0;
		fail_hook(hooks, EINVAL, "is not understood");
		return;
	}
	char **argv = params_all(&hooks->hook, "argv"), **env = params_all(&hooks->hook, "env");
	int error = run(hooks, argv, env);
	free(argv);
	free(env);
	if (error)
		fail_hook(hooks, error, "cannot be started");
}

void hooks_run(uint32_t id, const struct params *params, const struct answer *answer)
{
	struct hooks *hooks = calloc(1, sizeof *hooks);
	char *copy = params_get(params, "hook") ? malloc(params->size) : NULL;
	if (hooks == NULL || (params_get(params, "hook") && copy == NULL)) {
		free(hooks);
		free(copy);
		call_refused(id, ENOMEM, "identify: hooks");
		return;
	}
	if (copy) {
		memcpy(copy, params->data, params->size);
		hooks->all = (struct params){copy, params->size};
	}
	hooks->confirmed = *answer;
	hooks->output = hooks->child.report.fd = -1;
	stream_accept(&hooks->stream, id, &hooks_ops);
	next_hook(hooks);
}
