/* The multiplexed channel to the host: sync, streams, credit, and whose turn it is to send. */
#ifndef PRIMORDIA_CHANNEL_H
#define PRIMORDIA_CHANNEL_H

#include "frame.h"
#include "params.h"

#include <sys/types.h>

enum {
	WINDOW = 256 * 1024,
	HOST_STREAMS_MAX = 160,
	GUEST_STREAMS_MAX = 64, /* opened by us; the host allows no more */
};

struct stream;

struct stream_ops {
	/* Fill up to `room` bytes of payload and set the channel. 0: nothing to send now; call stream_ready later. */
	size_t (*produce)(struct stream *stream, uint8_t *payload, size_t room, uint8_t *channel);
	void (*on_data)(struct stream *stream, const uint8_t *data, size_t size);
	void (*on_eof)(struct stream *stream);
	void (*on_control)(struct stream *stream, const struct params *params);
	/* The stream is gone: called exactly once. `by_host`: closed by the host or with the connection, not by us. */
	void (*on_gone)(struct stream *stream, bool by_host);
};

/* Embedded in its owner. Everything but `answer` belongs to the channel. */
struct stream {
	uint32_t id;
	const struct stream_ops *ops;
	int64_t send_credit;
	uint32_t receive_credit, owed;
	bool opening, opened_due, ready, eof_due, closing, refused;
	int64_t second_began_ms; /* what was sent since then tells bulk from talk */
	uint32_t sent_in_second;
	struct answer answer; /* parameters of REFUSED, CLOSE, or of an OPEN of ours */
};

/* Serve the descriptor, a virtio port or a socket, as the channel from now on, instead of any earlier one. */
void channel_start(int fd);

/* Send what may be sent; true when there is more to do at once. */
bool channel_pump(void);

/* Whether a host is there at the moment. */
bool channel_connected(void);

/* Put a stream of the host into the table. */
void stream_accept(struct stream *stream, uint32_t id, const struct stream_ops *ops);

/* Open a stream to the host; false when no host is there or too many are open. Parameters go into stream->answer. */
bool stream_open(struct stream *stream, const struct stream_ops *ops, const char *kind);

void stream_opened(struct stream *stream);
void stream_ready(struct stream *stream);
void stream_consumed(struct stream *stream, size_t size);
void stream_eof(struct stream *stream);

/* Whether it carries so much at the moment that others go first. */
bool stream_is_bulk(const struct stream *stream);

/* End the stream; the parameters in stream->answer go with it. on_gone follows once the frame is queued. */
void stream_close(struct stream *stream);
void stream_refuse(struct stream *stream);

#endif
