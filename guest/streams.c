#include "streams.h"

struct stream *streams[STREAMS_MAX];

static unsigned guest_streams;

struct stream *streams_find(uint32_t id)
{
	for (unsigned i = 0; id && i < STREAMS_MAX; i++)
		if (streams[i] && streams[i]->id == id)
			return streams[i];
	return NULL;
}

unsigned streams_of_host(void)
{
	unsigned used = 0;
	for (unsigned i = 0; i < STREAMS_MAX; i++)
		used += streams[i] != NULL;
	return used - guest_streams;
}

static void forget(unsigned place, bool by_host)
{
	struct stream *stream = streams[place];
	streams[place] = NULL;
	if (stream->id % 2 == 0)
		guest_streams--;
	stream->ops->on_gone(stream, by_host);
}

void streams_forget(struct stream *stream, bool by_host)
{
	for (unsigned i = 0; i < STREAMS_MAX; i++)
		if (streams[i] == stream)
			forget(i, by_host);
}

void streams_forget_all(void)
{
	for (unsigned i = 0; i < STREAMS_MAX; i++)
		if (streams[i])
			forget(i, true);
}

static bool put(struct stream *stream, uint32_t id, const struct stream_ops *ops)
{
	for (unsigned i = 0; i < STREAMS_MAX; i++)
		if (streams[i] == NULL) {
			*stream = (struct stream){.id = id, .ops = ops, .send_credit = WINDOW, .receive_credit = WINDOW, .ready = true};
			streams[i] = stream;
			return true;
		}
	return false;
}

void stream_accept(struct stream *stream, uint32_t id, const struct stream_ops *ops)
{
	put(stream, id, ops); /* a place is kept: see REFUSALS */
}

bool stream_open(struct stream *stream, const struct stream_ops *ops, const char *kind)
{
	/* the number comes when the OPEN goes out */
	if (!channel_connected() || guest_streams >= GUEST_STREAMS_MAX || !put(stream, 0, ops))
		return false;
	answer_add(&stream->answer, "kind", "%s", kind);
	guest_streams++;
	stream->opening = stream->opened_due = true;
	return true;
}

void stream_opened(struct stream *stream)
{
	stream->opened_due = true;
}

void stream_ready(struct stream *stream)
{
	stream->ready = true;
}

void stream_consumed(struct stream *stream, size_t size)
{
	stream->owed += size;
}

void stream_eof(struct stream *stream)
{
	stream->eof_due = true;
}

void stream_close(struct stream *stream)
{
	stream->closing = true;
}

void stream_refuse(struct stream *stream)
{
	stream->closing = stream->refused = true;
}
