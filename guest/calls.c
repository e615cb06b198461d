#define _GNU_SOURCE
#include "calls.h"

#include "agent.h"
#include "tar.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "loop.h"

static void reply_gone(struct stream *stream, bool by_host)
{
	(void)by_host;
	loop_free(stream);
}

static const struct stream_ops reply_ops = {.on_gone = reply_gone};

static void reply(uint32_t id, const struct answer *answer, bool refused)
{
	struct stream *stream = calloc(1, sizeof *stream);
	if (stream == NULL)
		return;
	stream_accept(stream, id, &reply_ops);
	stream->answer = *answer;
	if (refused)
		stream_refuse(stream);
	else
		stream_close(stream);
}

void call_done(uint32_t id, const struct answer *answer)
{
	static const struct answer nothing;
	reply(id, answer ? answer : &nothing, false);
}

void call_refused(uint32_t id, int number, const char *format, ...)
{
	char message[512];
	va_list values;
	va_start(values, format);
	vsnprintf(message, sizeof message, format, values);
	va_end(values);
	struct answer answer = {0};
	answer_error(&answer, number, "%s", message);
	reply(id, &answer, true);
}

static void wait_main(uint32_t id, const struct params *params)
{
	(void)params;
	program_wait(id);
}

static void main_state(uint32_t id, const struct params *params)
{
	(void)params;
	program_state(id);
}

static void job_with_path(uint32_t id, const struct params *params, int (*job)(const char *))
{
	const char *path = params_get(params, "path");
	if (path == NULL || *path != '/')
		call_refused(id, EINVAL, "path must be absolute");
	else
		job_open(id, job, path);
}

static void read_tar(uint32_t id, const struct params *params)
{
	job_with_path(id, params, tar_create_job);
}

static void write_tar(uint32_t id, const struct params *params)
{
	job_with_path(id, params, tar_extract_job);
}

/* Served before and after there is a root, with an identity, while the user processes are frozen, during a shutdown. */
enum { EMPTY = 1, PREPARED = 2, CONFIGURED = 4, FROZEN = 8, LATE = 16 };
enum { EVER = EMPTY | PREPARED | CONFIGURED | FROZEN, WITH_ROOT = PREPARED | CONFIGURED | FROZEN };

static const struct kind {
	const char *name;
	void (*open)(uint32_t id, const struct params *params);
	unsigned when;
} kinds[] = {
	{"prepare", prepare_open, EMPTY | PREPARED | CONFIGURED},
	{"identify", identify_open, WITH_ROOT},
	{"release", release_open, WITH_ROOT},
	{"clock", clock_open, WITH_ROOT},
	{"rehearse", rehearse_open, WITH_ROOT},
	{"stir", stir_open, CONFIGURED | FROZEN},
	{"freeze", freeze_open, WITH_ROOT},
	{"thaw", thaw_open, WITH_ROOT},
	{"shutdown", shutdown_open, EVER},
	{"main_state", main_state, EVER | LATE},
	{"logs", program_logs, EVER | LATE},
	{"wait_main", wait_main, EVER | LATE},
	{"hosts", hosts_open, CONFIGURED | FROZEN},
	{"start_main", program_start, CONFIGURED},
	{"signal_main", program_signal, CONFIGURED},
	{"exec", exec_open, CONFIGURED},
	{"read_tar", read_tar, CONFIGURED},
	{"write_tar", write_tar, CONFIGURED},
	{"tcp", tcp_open, CONFIGURED},
	{"unix", unix_open, CONFIGURED},
	{"sync", sync_open, CONFIGURED},
	{"grow_data", grow_data_open, CONFIGURED},
	{"freeze_data", freeze_data_open, CONFIGURED},
	{"thaw_data", thaw_data_open, CONFIGURED},
};

/* Why a kind is not served now, as an errno with its words in `why`; 0 when it is. */
static int unserved(const struct kind *kind, const char **why)
{
	unsigned stage = agent.configured ? CONFIGURED : agent.prepared ? PREPARED : EMPTY;
	*why = "the guest is shutting down";
	if (agent.shutting_down)
		return kind->when & LATE ? 0 : ESHUTDOWN;
	*why = agent.prepared ? "the guest has no identity yet" : "the guest is not prepared yet";
	if (!(kind->when & stage))
		return EAGAIN;
	*why = "the guest is frozen";
	return agent.frozen && !(kind->when & FROZEN) ? EAGAIN : 0;
}

void call_open(uint32_t id, const struct params *params, bool full)
{
	const char *name = params_get(params, "kind");
	if (full) {
		call_refused(id, EMFILE, "too many streams are open");
		return;
	}
	for (size_t i = 0; name && i < sizeof kinds / sizeof *kinds; i++) {
		if (strcmp(kinds[i].name, name) != 0)
			continue;
		const char *why;
		int error = unserved(&kinds[i], &why);
		if (error)
			call_refused(id, error, "%s", why);
		else
			kinds[i].open(id, params);
		return;
	}
	call_refused(id, ENOSYS, "the agent does not know the stream kind %s", name ? name : "(none)");
}
