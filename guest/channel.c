/* The port: bytes to frames to streams, and frames back. At most one frame is under way to the port. */
#define _GNU_SOURCE
#include "channel.h"

#include "agent.h"
#include "calls.h"
#include "loop.h"
#include "sending.h"
#include "streams.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	FRAMES_PER_PUMP = 16,
	READS_PER_PUMP = 16,
	OPEN_MAX = 4 * 1024 * 1024,
	GONE_MS = 250,
};

static struct source port = {.fd = -1};
static bool port_readable, connected;
static struct frame_parser parser;

static uint8_t out[FRAME_MAX];
static size_t out_used, out_sent;

static uint32_t last_host_id;
static struct timer gone_timer;

/* An OPEN whose parameters are still coming. */
static char *open_data;
static size_t open_size;
static uint32_t open_id;

bool channel_connected(void)
{
	return connected;
}

static void drop_open(void)
{
	if (open_data)
		explicit_bzero(open_data, open_size); /* it may hold secrets, which a fork must not find */
	free(open_data);
	open_data = NULL;
	open_size = 0;
}

static void drop_connection(void)
{
	connected = false;
	out_used = 0;
	drop_open();
	streams_forget_all();
}

static bool on_hello(const struct frame *frame)
{
	if (frame->length != HELLO_PAYLOAD || memcmp(frame->payload, HELLO_MAGIC, sizeof HELLO_MAGIC) != 0)
		return false;
	drop_connection();
	sending_greeted(frame->payload + 20);
	connected = true;
	last_host_id = 0;
	return true;
}

static bool on_open(const struct frame *frame)
{
	bool fresh = open_data == NULL;
	if (frame->stream % 2 == 0 || (fresh ? frame->stream <= last_host_id : frame->stream != open_id))
		return false;
	if (open_size + frame->length > OPEN_MAX)
		return false;
	char *grown = realloc(open_data, open_size + frame->length + 1);
	if (grown == NULL)
		return false;
	open_data = grown;
	memcpy(open_data + open_size, frame->payload, frame->length);
	open_size += frame->length;
	open_id = last_host_id = frame->stream;
	if (frame->flags & FLAG_MORE)
		return true;
	struct params params = {open_data, open_size};
	unsigned open = streams_of_host();
	bool valid = params_valid(&params) && open < HOST_STREAMS_MAX + REFUSALS;
	sending_heard(NULL);
	if (valid)
		call_open(open_id, &params, open >= HOST_STREAMS_MAX);
	drop_open();
	return valid;
}

static bool on_data(struct stream *stream, const struct frame *frame)
{
	if (frame->length > stream->receive_credit || stream->ops->on_data == NULL)
		return false;
	stream->receive_credit -= frame->length;
	stream->ops->on_data(stream, frame->payload, frame->length);
	return true;
}

static bool on_control(struct stream *stream, const struct frame *frame)
{
	struct params params = {(const char *)frame->payload, frame->length};
	if (!params_valid(&params))
		return false;
	if (stream->ops->on_control)
		stream->ops->on_control(stream, &params);
	return true;
}

static bool on_stream_frame(struct stream *stream, const struct frame *frame)
{
	sending_heard(stream);
	switch (frame->type) {
	case FRAME_DATA:
		return on_data(stream, frame);
	case FRAME_EOF:
		if (stream->ops->on_eof)
			stream->ops->on_eof(stream);
		return true;
	case FRAME_WINDOW:
		if (frame->length != 4)
			return false;
		stream->send_credit += get_u32(frame->payload);
		stream->ready = true;
		return true;
	case FRAME_OPENED:
		if (!stream->opening)
			return false;
		stream->opening = false;
		stream->ready = true;
		return true;
	case FRAME_REFUSED:
	case FRAME_CLOSE:
		streams_forget(stream, true);
		return true;
	case FRAME_CONTROL:
		return on_control(stream, frame);
	default:
		return false;
	}
}

static bool on_frame(void *context, const struct frame *frame)
{
	(void)context;
	if (open_data && frame->type != FRAME_OPEN && frame->type != FRAME_HELLO)
		return false;
	switch (frame->type) {
	case FRAME_HELLO:
		return on_hello(frame);
	case FRAME_OPEN:
		return on_open(frame);
	case FRAME_PING:
		if (frame->length != 8)
			return false;
		sending_pong(frame->payload);
		return true;
	default:
		break;
	}
	struct stream *stream = streams_find(frame->stream);
	if (stream)
		return on_stream_frame(stream, frame);
	/* Frames may cross our CLOSE on the way; only a stream that never was is an error. */
	return frame->stream % 2 ? frame->stream <= last_host_id : sending_knows(frame->stream);
}

static void lose_sync(void)
{
	parser.synced = false;
	parser.used = 0;
	drop_connection();
}

/* The kernel hears that a host came or went on another queue than the one its bytes come on: the news that the last
 * host has gone may arrive behind the HELLO of the next. So an empty read says little; what the port says a little later
 * counts. A host that came in between greets, and that drops the old connection anyway. */
static void check_gone(struct timer *timer)
{
	(void)timer;
	struct pollfd state = {.fd = port.fd};
	if (poll(&state, 1, 0) < 0 || (state.revents & (POLLHUP | POLLERR | POLLNVAL)))
		lose_sync();
}

static void read_port(void)
{
	static uint8_t in[32768];
	for (int i = 0; port_readable && i < READS_PER_PUMP; i++) {
		ssize_t count = read(port.fd, in, sizeof in);
		if (count > 0) {
			if (!frame_feed(&parser, in, count, on_frame, NULL) && !parser.synced)
				drop_connection();
			continue;
		}
		port_readable = count < 0 && errno == EINTR;
		if (count == 0 && connected && !gone_timer.armed)
			timer_set(&gone_timer, GONE_MS, check_gone);
	}
}

static void on_port(struct source *source, uint32_t events)
{
	(void)source;
	if (events & (EPOLLIN | EPOLLHUP | EPOLLRDHUP | EPOLLERR))
		port_readable = true;
}

void channel_start(int fd)
{
	source_close(&port);
	timer_clear(&gone_timer);
	lose_sync();
	port_readable = true;
	if (!source_add(&port, fd, on_port))
		agent_log("cannot watch the channel");
}

bool channel_pump(void)
{
	read_port();
	for (int i = 0; connected && i < FRAMES_PER_PUMP; i++) {
		if (out_used == 0) {
			out_used = sending_next(out);
			out_sent = 0;
		}
		if (out_used == 0)
			return port_readable;
		ssize_t count = write(port.fd, out + out_sent, out_used - out_sent);
		if (count < 0 && errno == EAGAIN)
			return port_readable;
		if (count < 0 && errno != EINTR) {
			drop_connection();
			return port_readable;
		}
		out_sent += count > 0 ? (size_t)count : 0;
		if (out_sent == out_used)
			out_used = 0;
	}
	return connected || port_readable;
}
