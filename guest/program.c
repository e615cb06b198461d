/* The context's main program: started once, its output kept in a ring with absolute offsets. Reading the ring never
 * holds the program up: when nobody reads, the oldest bytes are dropped, and a reader is told by the offset. */
#define _GNU_SOURCE
#include "agent.h"
#include "calls.h"
#include "data.h"
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	RING = 256 * 1024,
	READS_PER_PUMP = 8,
	LOG_PREFIX = 8, /* each DATA of a logs stream begins with the absolute offset of its first byte */
};

static struct child child;
static struct source output = {.fd = -1};
static bool readable, started, ended;
static int status;
static char ring[RING];
static uint64_t written;

static struct stream *starter; /* waits for the outcome of start_main */

/* A wait_main or logs stream. */
struct follower {
	struct stream stream;
	bool logs;
	uint64_t offset;
	struct follower *next;
};

static struct follower *followers;

static bool output_done(void)
{
	return ended && !readable;
}

static void add_result(struct answer *answer)
{
	answer_add(answer, "code", "%d", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	answer_add(answer, "signal", "%d", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
}

/* ---- followers ---- */

static void follower_gone(struct stream *stream, bool by_host)
{
	struct follower *gone = OWNER(stream, struct follower, stream);
	(void)by_host;
	for (struct follower **at = &followers; *at; at = &(*at)->next)
		if (*at == gone) {
			*at = gone->next;
			break;
		}
	loop_free(gone);
}

static size_t produce_log(struct stream *stream, uint8_t *payload, size_t room, uint8_t *channel)
{
	struct follower *log = OWNER(stream, struct follower, stream);
	*channel = 1;
	if (written > RING && log->offset < written - RING)
		log->offset = written - RING;
	size_t size = written - log->offset;
	if (size == 0 && output_done())
		stream_close(stream);
	if (size == 0 || room <= LOG_PREFIX)
		return 0;
	if (size > room - LOG_PREFIX)
		size = room - LOG_PREFIX;
	put_u64(payload, log->offset);
	size_t start = log->offset % RING, first = size < RING - start ? size : RING - start;
	memcpy(payload + LOG_PREFIX, ring + start, first);
	memcpy(payload + LOG_PREFIX + first, ring, size - first);
	log->offset += size;
	return size + LOG_PREFIX;
}

static const struct stream_ops wait_ops = {.on_gone = follower_gone};
static const struct stream_ops log_ops = {.produce = produce_log, .on_gone = follower_gone};

static struct follower *follow(uint32_t id, const struct stream_ops *ops)
{
	struct follower *follower = calloc(1, sizeof *follower);
	if (follower == NULL) {
		call_refused(id, ENOMEM, "no memory");
		return NULL;
	}
	stream_accept(&follower->stream, id, ops);
	stream_opened(&follower->stream);
	follower->next = followers;
	followers = follower;
	return follower;
}

static void wake_followers(void)
{
	for (struct follower *follower = followers; follower; follower = follower->next) {
		if (follower->logs) {
			stream_ready(&follower->stream);
		} else if (ended && !follower->stream.closing) {
			add_result(&follower->stream.answer);
			stream_close(&follower->stream);
		}
	}
}

void program_wait(uint32_t id)
{
	if (follow(id, &wait_ops) && ended)
		wake_followers();
}

void program_logs(uint32_t id, const struct params *params)
{
	struct follower *log = follow(id, &log_ops);
	if (log == NULL)
		return;
	uint64_t offset = (uint64_t)params_number(params, "offset", 0, INT64_MAX, 0);
	log->logs = true;
	log->offset = offset < written ? offset : written;
}

/* ---- output ---- */

static void on_output(struct source *source, uint32_t events)
{
	(void)source;
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		readable = true;
}

bool program_pump(void)
{
	bool changed = false;
	for (int i = 0; readable && i < READS_PER_PUMP; i++) {
		size_t start = written % RING;
		ssize_t count = read(output.fd, ring + start, RING - start);
		if (count > 0) {
			written += count;
			changed = true;
		} else if (count == 0 || errno != EINTR) {
			readable = false;
			if (count == 0 || errno != EAGAIN)
				source_close(&output);
			changed = true;
		}
	}
	if (changed)
		wake_followers();
	return readable;
}

/* ---- start, state, signals ---- */

bool program_running(void)
{
	return started && !ended;
}

bool program_ended(void)
{
	return ended;
}

void program_kill(int number)
{
	if (program_running())
		child_signal(&child, number);
}

static void starter_gone(struct stream *stream, bool by_host)
{
	(void)by_host;
	if (starter == stream)
		starter = NULL;
	loop_free(stream);
}

static const struct stream_ops starter_ops = {.on_gone = starter_gone};

static void on_started(struct child *same, int error, const char *what)
{
	(void)same;
	if (error) {
		started = readable = false;
		source_close(&output);
	}
	if (starter == NULL)
		return;
	if (error) {
		answer_error(&starter->answer, error, "cannot start %s", what);
		stream_refuse(starter);
	} else {
		stream_close(starter);
	}
	starter = NULL;
}

static void on_ended(struct child *same, int wait_status)
{
	same->pid = 0;
	ended = true;
	status = wait_status;
	readable = output.fd >= 0;
	wake_followers();
}

static int connect_output(struct spawn *spawn, const struct params *params)
{
	int ends[2];
	spawn->stdio[0] = spawn->stdio[1] = spawn->stdio[2] = -1;
	if (spawn->tty) {
		int rows = (int)params_number(params, "rows", 1, 10000, 24);
		int columns = (int)params_number(params, "columns", 1, 10000, 80);
		if (!make_terminal(ends, rows, columns))
			return errno;
		spawn->stdio[0] = fcntl(ends[1], F_DUPFD_CLOEXEC, 3);
	} else {
		if (!make_pipe(ends, 0))
			return errno;
		spawn->stdio[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	}
	spawn->stdio[1] = ends[1];
	spawn->stdio[2] = fcntl(ends[1], F_DUPFD_CLOEXEC, 3);
	return source_add(&output, ends[0], on_output) ? 0 : EIO;
}

static int launch(struct spawn *spawn, const struct params *params)
{
	int error = connect_output(spawn, params);
	if (!error)
		error = child_spawn(&child, spawn);
	close_all(spawn->stdio, 3);
	if (error)
		source_close(&output);
	return error;
}

static void start(uint32_t id, const struct params *params, char **argv, char **env)
{
	const char *cwd = params_get(params, "cwd"), *user = params_get(params, "user");
	struct spawn spawn = {
		.argv = argv,
		.env = env,
		.cwd = cwd ? cwd : "",
		.user = user ? user : "",
		.tty = params_number(params, "tty", 0, 1, 0),
		.give = data_give,
	};
	child = (struct child){.on_started = on_started, .on_exit = on_ended, .report.fd = -1};
	starter = calloc(1, sizeof *starter);
	int error = starter ? launch(&spawn, params) : ENOMEM;
	if (error) {
		free(starter);
		starter = NULL;
		call_refused(id, error, "cannot start the main program");
		return;
	}
	started = true;
	stream_accept(starter, id, &starter_ops);
}

void program_start(uint32_t id, const struct params *params)
{
	if (started) {
		call_refused(id, EALREADY, "the main program was started before");
		return;
	}
	char **argv = params_all(params, "argv"), **env = params_all(params, "env");
	if (argv && env && argv[0])
		start(id, params, argv, env);
	else
		call_refused(id, EINVAL, "no program is named");
	free(argv);
	free(env);
}

void program_signal(uint32_t id, const struct params *params)
{
	int number = (int)params_number(params, "signal", 1, SIGRTMAX, 0);
	int error = number == 0 ? EINVAL : program_running() ? child_signal(&child, number) : ESRCH;
	if (error)
		call_refused(id, error, "cannot signal the main program");
	else
		call_done(id, NULL);
}

void program_state(uint32_t id)
{
	struct answer answer = {0};
	answer_add(&answer, "phase", "%s", ended ? "ended" : started ? "running" : "none");
	if (ended)
		add_result(&answer);
	else if (started)
		answer_add(&answer, "pid", "%d", (int)child.pid);
	call_done(id, &answer);
}
