/* Invariants: everything that waits to be sent is a flag in a stream (or one of two here), so that no queue can grow;
 * streams take turns frame by frame, so that a flood on one does not starve another.
 *
 * Turns alone do not make it fair: carrying a flood costs CPU time, and a guest may have a single CPU. So while other
 * streams talk, all bulk streams together get one frame for each BULK_PAUSE_MS; when nobody talks, they get everything.
 */
#define _GNU_SOURCE
#include "sending.h"

#include "agent.h"
#include "bootid.h"
#include "loop.h"
#include "streams.h"

#include <string.h>

enum {
	GIVE_BACK = WINDOW / 4,
	BULK = 1024 * 1024, /* bytes in a second that make a stream bulk */
	BULK_PAUSE_MS = 10,
	TALK_MS = 50, /* how long after its last frame somebody still talks */
};

static uint8_t *out_frame;
static size_t out_size;

static bool ack_due, pong_due;
static uint8_t nonce[16], pong[8];

static unsigned turn;
static uint32_t next_id;
static int64_t talk_until_ms, next_bulk_ms;
static struct timer bulk_timer;

void sending_greeted(const uint8_t host_nonce[16])
{
	memcpy(nonce, host_nonce, sizeof nonce);
	boot_id_greeted(nonce);
	ack_due = true;
	pong_due = false;
	next_id = 2;
}

void sending_pong(const uint8_t payload[8])
{
	memcpy(pong, payload, sizeof pong);
	pong_due = true;
}

bool sending_knows(uint32_t id)
{
	return id > 0 && id < next_id;
}

void sending_heard(const struct stream *stream)
{
	if (stream == NULL || !stream_is_bulk(stream))
		talk_until_ms = now_ms() + TALK_MS;
}

static bool seal(uint8_t type, uint8_t flags, uint32_t stream, size_t length)
{
	out_size = frame_seal(out_frame, type, flags, stream, length);
	return true;
}

static bool seal_answer(uint8_t type, struct stream *stream)
{
	memcpy(out_frame + FRAME_HEADER, stream->answer.data, stream->answer.used);
	size_t length = stream->answer.used;
	stream->answer.used = 0;
	return seal(type, 0, stream->id, length);
}

/* Ours get their numbers as they go out: turns are not in the order of opening, and numbers must rise. */
static bool seal_open(struct stream *stream)
{
	stream->id = next_id;
	next_id += 2;
	return seal_answer(FRAME_OPEN, stream);
}

static bool seal_hello_ack(void)
{
	uint8_t *payload = out_frame + FRAME_HEADER;
	memcpy(payload, nonce, 16);
	put_u32(payload + 16, PROTOCOL_VERSION);
	memcpy(payload + 20, boot_id(), 16);
	put_u32(payload + 36, agent_state());
	ack_due = false;
	return seal(FRAME_HELLO_ACK, 0, 0, HELLO_ACK_PAYLOAD);
}

static bool seal_pong(void)
{
	memcpy(out_frame + FRAME_HEADER, pong, sizeof pong);
	pong_due = false;
	return seal(FRAME_PONG, 0, 0, sizeof pong);
}

static bool seal_window(struct stream *stream)
{
	put_u32(out_frame + FRAME_HEADER, stream->owed);
	stream->receive_credit += stream->owed;
	stream->owed = 0;
	return seal(FRAME_WINDOW, 0, stream->id, 4);
}

bool stream_is_bulk(const struct stream *stream)
{
	return stream->sent_in_second >= BULK;
}

static void count_sent(struct stream *stream, size_t length, int64_t now)
{
	if (now - stream->second_began_ms > 1000) {
		stream->second_began_ms = now;
		stream->sent_in_second = 0;
	}
	stream->sent_in_second += length;
	if (stream_is_bulk(stream))
		next_bulk_ms = now + BULK_PAUSE_MS;
	else
		talk_until_ms = now + TALK_MS;
}

static void bulk_again(struct timer *timer)
{
	(void)timer; /* the turn of the loop itself looks for frames */
}

static bool held_back(const struct stream *stream)
{
	int64_t now = now_ms();
	if (!stream_is_bulk(stream) || now >= talk_until_ms || now >= next_bulk_ms)
		return false;
	if (!bulk_timer.armed)
		timer_set(&bulk_timer, next_bulk_ms - now, bulk_again);
	return true;
}

static bool seal_data(struct stream *stream)
{
	size_t room = stream->send_credit < FRAME_PAYLOAD_MAX ? (size_t)stream->send_credit : FRAME_PAYLOAD_MAX;
	uint8_t channel = 0;
	size_t length = stream->ops->produce(stream, out_frame + FRAME_HEADER, room, &channel);
	if (length == 0) {
		stream->ready = false;
		return false;
	}
	stream->send_credit -= length;
	count_sent(stream, length, now_ms());
	return seal(FRAME_DATA, channel, stream->id, length);
}

/* The next frame of one stream, if it has any: answers first, then credit, data, end. */
static bool next_of(struct stream *stream)
{
	if (stream->opened_due) {
		stream->opened_due = false;
		return stream->opening ? seal_open(stream) : seal(FRAME_OPENED, 0, stream->id, 0);
	}
	if (stream->opening)
		return false;
	if (stream->closing) {
		seal_answer(stream->refused ? FRAME_REFUSED : FRAME_CLOSE, stream);
		streams_forget(stream, false);
		return true;
	}
	if (stream->owed >= GIVE_BACK)
		return seal_window(stream);
	if (stream->ready && stream->send_credit > 0 && stream->ops->produce && !held_back(stream) &&
	    seal_data(stream))
		return true;
	if (stream->eof_due) {
		stream->eof_due = false;
		return seal(FRAME_EOF, 0, stream->id, 0);
	}
	return false;
}

static bool next_of_streams(void)
{
	for (unsigned i = 0; i < STREAMS_MAX; i++) {
		turn = (turn + 1) % STREAMS_MAX;
		struct stream *stream = streams[turn];
		/* produce may have decided to close: look again at once, so that the end is not forgotten */
		if (stream && (next_of(stream) || (stream->closing && next_of(stream))))
			return true;
	}
	return false;
}

size_t sending_next(uint8_t *out)
{
	out_frame = out;
	out_size = 0;
	if (ack_due)
		seal_hello_ack();
	else if (pong_due)
		seal_pong();
	else
		next_of_streams();
	return out_size;
}
