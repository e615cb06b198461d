/* A child beside the main program, bound to a stream: a program (exec) or a job of ours (tar). */
#define _GNU_SOURCE
#include "bytes.h"
#include "calls.h"
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	/* What is still read after the program's end: what it wrote itself fits its pipes, and a background child that
	 * goes on writing must not keep the exec open. */
	DRAIN_MAX = 1024 * 1024,
	END_OF_TRANSMISSION = 4, /* what a terminal takes as end of input */
};

struct output {
	struct source source;
	struct run *run;
	bool readable;
};

struct run {
	struct stream stream;
	struct child child;
	struct output outputs[2];
	struct source input;
	struct bytes pending;
	bool tty, job, started, exited, input_ending, in_background;
	unsigned next_output;
	int status;
	size_t drained, complained, own_input;
	char complaint[512];
};

static void on_output(struct source *source, uint32_t events)
{
	struct output *output = OWNER(source, struct output, source);
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
		output->readable = true;
		stream_ready(&output->run->stream);
	}
}

static size_t read_output(struct output *output, uint8_t *payload, size_t room)
{
	while (output->readable) {
		ssize_t count = read(output->source.fd, payload, room);
		if (count > 0)
			return count;
		if (count < 0 && errno == EINTR)
			continue;
		output->readable = false;
		if (count == 0 || errno != EAGAIN) /* a terminal without programs gives EIO */
			source_close(&output->source);
	}
	return 0;
}

static void read_complaint(struct run *run)
{
	size_t room = sizeof run->complaint - 1 - run->complained;
	run->complained += read_output(&run->outputs[1], (uint8_t *)run->complaint + run->complained, room);
}

static void finish(struct run *run)
{
	struct answer *answer = &run->stream.answer;
	int code = WIFEXITED(run->status) ? WEXITSTATUS(run->status) : 128 + WTERMSIG(run->status);
	if (!run->job) {
		answer_add(answer, "code", "%d", code);
		answer_add(answer, "signal", "%d", WIFSIGNALED(run->status) ? WTERMSIG(run->status) : 0);
	} else if (code) {
		run->outputs[1].readable = run->outputs[1].source.fd >= 0;
		read_complaint(run);
		answer_error(answer, WIFEXITED(run->status) ? code : EIO, "%s", run->complained ? run->complaint : "it was killed");
	}
	stream_close(&run->stream);
}

/* A program that floods must not take the CPU from its neighbours either: the channel shares turns, but producing a
 * flood could fill the guest's only CPU. */
static void count_output(struct run *run, size_t size)
{
	run->drained += run->exited ? size : 0;
	if (!run->in_background && stream_is_bulk(&run->stream)) {
		run->in_background = true;
		child_to_background(&run->child);
	}
}

static size_t produce(struct stream *stream, uint8_t *payload, size_t room, uint8_t *channel)
{
	struct run *run = OWNER(stream, struct run, stream);
	if (!run->started)
		return 0;
	unsigned outputs = run->job ? 1 : 2;
	for (unsigned i = 0; i < outputs && run->drained < DRAIN_MAX; i++) {
		unsigned which = run->next_output++ % outputs;
		size_t size = read_output(&run->outputs[which], payload, room);
		if (size) {
			*channel = which + 1;
			count_output(run, size);
			return size;
		}
	}
	if (run->exited)
		finish(run);
	return 0;
}

/* Give the host back what was taken from the queue, except for what we had put there ourselves. */
static void consumed(struct run *run, size_t size)
{
	size_t own = run->own_input < size ? run->own_input : size;
	run->own_input -= own;
	stream_consumed(&run->stream, size - own);
}

static void close_input(struct run *run)
{
	source_close(&run->input);
	consumed(run, run->pending.used);
	bytes_free(&run->pending);
}

static void feed_input(struct run *run)
{
	if (run->input.fd < 0) {
		close_input(run);
		return;
	}
	long count = bytes_flush(&run->pending, run->input.fd);
	if (count > 0)
		consumed(run, count);
	if (count < 0 || (run->input_ending && run->pending.used == 0))
		close_input(run);
}

static void on_input(struct source *source, uint32_t events)
{
	struct run *run = OWNER(source, struct run, input);
	if (events & EPOLLERR)
		close_input(run); /* nobody will read it any more */
	else
		feed_input(run);
}

static void on_data(struct stream *stream, const uint8_t *data, size_t size)
{
	struct run *run = OWNER(stream, struct run, stream);
	if (run->input.fd < 0 || run->input_ending || !bytes_append(&run->pending, data, size))
		stream_consumed(stream, size);
	else
		feed_input(run);
}

static void on_eof(struct stream *stream)
{
	struct run *run = OWNER(stream, struct run, stream);
	static const uint8_t end = END_OF_TRANSMISSION;
	if (run->tty) {
		run->own_input += bytes_append(&run->pending, &end, 1);
	} else {
		run->input_ending = true;
	}
	feed_input(run);
}

static void on_control(struct stream *stream, const struct params *params)
{
	struct run *run = OWNER(stream, struct run, stream);
	int number = (int)params_number(params, "signal", 1, SIGRTMAX, 0);
	if (number)
		child_signal(&run->child, number);
	struct winsize size = {
		.ws_row = params_number(params, "rows", 1, 10000, 0),
		.ws_col = params_number(params, "columns", 1, 10000, 0),
	};
	if (run->tty && size.ws_row && size.ws_col && run->outputs[0].source.fd >= 0)
		ioctl(run->outputs[0].source.fd, TIOCSWINSZ, &size);
}

static void on_gone(struct stream *stream, bool by_host)
{
	struct run *run = OWNER(stream, struct run, stream);
	(void)by_host;
	child_abandon(&run->child); /* nothing to do when it has ended */
	source_close(&run->outputs[0].source);
	source_close(&run->outputs[1].source);
	source_close(&run->input);
	bytes_free(&run->pending);
	loop_free(run);
}

static const struct stream_ops run_ops = {
	.produce = produce,
	.on_data = on_data,
	.on_eof = on_eof,
	.on_control = on_control,
	.on_gone = on_gone,
};

static void on_started(struct child *child, int error, const char *what)
{
	struct run *run = OWNER(child, struct run, child);
	if (error) {
		answer_error(&run->stream.answer, error, "cannot start %s", what);
		stream_refuse(&run->stream);
		return;
	}
	run->started = true;
	stream_opened(&run->stream);
	stream_ready(&run->stream);
}

static void on_exit_(struct child *child, int wait_status)
{
	struct run *run = OWNER(child, struct run, child);
	child->pid = 0;
	run->exited = true;
	run->status = wait_status;
	for (int i = 0; i < 2; i++)
		run->outputs[i].readable = run->outputs[i].source.fd >= 0;
	stream_ready(&run->stream);
}

static bool watch(struct run *run, int input, int output, int error)
{
	run->outputs[0].run = run->outputs[1].run = run;
	return (input < 0 || source_add(&run->input, input, on_input)) &&
	       source_add(&run->outputs[0].source, output, on_output) &&
	       (error < 0 || source_add(&run->outputs[1].source, error, on_output));
}

/* Make the child's three descriptors and watch our ends. Returns false with errno; the caller closes `theirs`. */
static bool connect_stdio(struct run *run, const struct params *params, bool wants_input, int theirs[3])
{
	int ends[2];
	if (run->tty) {
		int rows = (int)params_number(params, "rows", 1, 10000, 24);
		int columns = (int)params_number(params, "columns", 1, 10000, 80);
		if (!make_terminal(ends, rows, columns))
			return false;
		theirs[0] = ends[1];
		theirs[1] = fcntl(ends[1], F_DUPFD_CLOEXEC, 3);
		theirs[2] = fcntl(ends[1], F_DUPFD_CLOEXEC, 3);
		return watch(run, fcntl(ends[0], F_DUPFD_CLOEXEC, 3), ends[0], -1);
	}
	int input = -1, output, error;
	if (!wants_input) {
		theirs[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	} else {
		if (!make_pipe(ends, 1))
			return false;
		theirs[0] = ends[0];
		input = ends[1];
	}
	int outs[2], errs[2];
	if (!make_pipe(outs, 0) || !make_pipe(errs, 0))
		return false;
	output = outs[0], theirs[1] = outs[1];
	error = errs[0], theirs[2] = errs[1];
	return watch(run, input, output, error);
}

static struct run *run_new(void)
{
	struct run *run = calloc(1, sizeof *run);
	if (run == NULL)
		return NULL;
	run->outputs[0].source.fd = run->outputs[1].source.fd = run->input.fd = run->child.report.fd = -1;
	run->child.on_started = on_started;
	run->child.on_exit = on_exit_;
	return run;
}

static void run_start(uint32_t id, struct run *run, struct spawn *spawn, const struct params *params, bool wants_input)
{
	stream_accept(&run->stream, id, &run_ops);
	int theirs[3] = {-1, -1, -1};
	int error = connect_stdio(run, params, wants_input, theirs) ? 0 : errno ? errno : EIO;
	memcpy(spawn->stdio, theirs, sizeof theirs);
	spawn->tty = run->tty;
	if (!error)
		error = child_spawn(&run->child, spawn);
	close_all(theirs, 3);
	if (error) {
		answer_error(&run->stream.answer, error, "cannot start a process");
		stream_refuse(&run->stream);
	}
}

void exec_open(uint32_t id, const struct params *params)
{
	struct run *run = run_new();
	char **argv = params_all(params, "argv"), **env = params_all(params, "env");
	const char *cwd = params_get(params, "cwd"), *user = params_get(params, "user");
	if (run == NULL || argv == NULL || env == NULL || argv[0] == NULL) {
		call_refused(id, run && argv && env ? EINVAL : ENOMEM, "no program is named");
		free(run);
	} else {
		struct spawn spawn = {.argv = argv, .env = env, .cwd = cwd ? cwd : "", .user = user ? user : ""};
		run->tty = params_number(params, "tty", 0, 1, 0);
		run_start(id, run, &spawn, params, params_number(params, "stdin", 0, 1, 0));
	}
	free(argv);
	free(env);
}

/* An exec of the agent itself, which writes a little and ends: for a fork that waits, so that the way is warm. It runs
 * outside of the group of the user processes, which stand. */
void rehearse_open(uint32_t id, const struct params *params)
{
	struct run *run = run_new();
	if (run == NULL) {
		call_refused(id, ENOMEM, "no memory");
		return;
	}
	char *argv[] = {"kbl", "--help", NULL}, *env[] = {NULL};
	struct spawn spawn = {.argv = argv, .env = env, .cwd = "", .user = "", .own = true};
	run_start(id, run, &spawn, params, false);
}

void job_open(uint32_t id, int (*job)(const char *), const char *argument)
{
	struct run *run = run_new();
	if (run == NULL) {
		call_refused(id, ENOMEM, "no memory");
		return;
	}
	struct spawn spawn = {.job = job, .job_argument = argument};
	static const struct params none;
	run->job = true;
	run_start(id, run, &spawn, &none, true);
}
