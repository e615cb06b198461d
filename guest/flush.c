/* syncfs on the root and every data drive: for a sync, which somebody waits for.
 *
 * It blocks, so it is done beside the loop; in a thread, for an emulated guest takes longer to make a process and to end it
 * than for what it does. The thread touches nothing but its own structure: what it flushes was opened for it. */
#define _GNU_SOURCE
#include "calls.h"
#include "data.h"
#include "loop.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { STACK = 64 * 1024 };

struct flush {
	struct stream stream;
	struct source done; /* open as long as the thread runs */
	int fds[1 + DATA_MAX], count, error, wake;
	bool gone;
};

static void *flush_all(void *argument)
{
	struct flush *flush = argument;
	static const uint64_t one = 1;
	for (int i = 0; i < flush->count; i++) {
		if (syncfs(flush->fds[i]) != 0)
			flush->error = errno;
		close(flush->fds[i]);
	}
	ssize_t ignored = write(flush->wake, &one, sizeof one); /* from here on it is the loop's alone */
	(void)ignored;
	return NULL;
}

static void on_done(struct source *source, uint32_t events)
{
	struct flush *flush = OWNER(source, struct flush, done);
	uint64_t count;
	(void)events;
	if (read(source->fd, &count, sizeof count) != sizeof count)
		return; /* that it may be written to is an event, too */
	source_close(source);
	if (flush->gone) {
		loop_free(flush);
		return;
	}
	if (flush->error)
		answer_error(&flush->stream.answer, flush->error, "cannot sync: %s", strerror(flush->error));
	stream_close(&flush->stream);
}

static void on_data(struct stream *stream, const uint8_t *data, size_t size)
{
	(void)data;
	stream_consumed(stream, size);
}

static void on_gone(struct stream *stream, bool by_host)
{
	struct flush *flush = OWNER(stream, struct flush, stream);
	(void)by_host;
	if (flush->done.fd >= 0)
		flush->gone = true; /* the thread still has it */
	else
		loop_free(flush);
}

static const struct stream_ops flush_ops = {.on_data = on_data, .on_gone = on_gone};

static int start(struct flush *flush)
{
	pthread_t thread;
	pthread_attr_t attributes;
	int error = pthread_attr_init(&attributes);
	if (error)
		return error;
	pthread_attr_setstacksize(&attributes, STACK);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	error = pthread_create(&thread, &attributes, flush_all, flush);
	pthread_attr_destroy(&attributes);
	return error;
}

static int begin(struct flush *flush)
{
	flush->fds[flush->count] = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (flush->fds[flush->count] < 0)
		return errno;
	flush->count++;
	int opened = data_open(flush->fds + flush->count);
	if (opened < 0)
		return -opened;
	flush->count += opened;
	flush->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (flush->wake < 0 || !source_add(&flush->done, flush->wake, on_done))
		return errno ? errno : EIO;
	int error = start(flush);
	if (error)
		source_close(&flush->done);
	return error;
}

void sync_open(uint32_t id, const struct params *params)
{
	(void)params;
	struct flush *flush = calloc(1, sizeof *flush);
	if (flush == NULL) {
		call_refused(id, ENOMEM, "no memory");
		return;
	}
	flush->done.fd = -1;
	stream_accept(&flush->stream, id, &flush_ops);
	int error = begin(flush);
	if (error) {
		for (int i = 0; i < flush->count; i++)
			close(flush->fds[i]);
		answer_error(&flush->stream.answer, error, "cannot sync: %s", strerror(error));
		stream_refuse(&flush->stream);
		return;
	}
	stream_opened(&flush->stream);
}
