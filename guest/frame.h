/* Frames on the byte channel: see PROTOCOL.md. Pure code: no descriptor is touched here, so that it can be fuzzed. */
#ifndef PRIMORDIA_FRAME_H
#define PRIMORDIA_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	FRAME_HEADER = 12,
	FRAME_PAYLOAD_MAX = 32768,
	FRAME_MAX = FRAME_HEADER + FRAME_PAYLOAD_MAX,
	HELLO_PAYLOAD = 36,     /* magic 16, version 4, nonce 16 */
	HELLO_ACK_PAYLOAD = 40, /* nonce 16, version 4, boot id 16, state 4 */
	PROTOCOL_VERSION = 2,
};

enum frame_type {
	FRAME_HELLO = 1,
	FRAME_HELLO_ACK,
	FRAME_PING,
	FRAME_PONG,
	FRAME_OPEN,
	FRAME_OPENED,
	FRAME_REFUSED,
	FRAME_DATA,
	FRAME_WINDOW,
	FRAME_EOF,
	FRAME_CLOSE,
	FRAME_CONTROL,
	FRAME_TYPE_LAST = FRAME_CONTROL,
};

enum {
	FLAG_MORE = 0x80,         /* OPEN: the parameters go on in the next frame */
	FLAG_CHANNEL_MASK = 0x0f, /* DATA, EOF: which of the stream's byte channels */
};

extern const uint8_t HELLO_MAGIC[16];

struct frame {
	uint8_t type;
	uint8_t flags;
	uint16_t length;
	uint32_t stream;
	const uint8_t *payload;
};

/* CRC-32 as zlib computes it (polynomial 0xEDB88320, reflected); start with 0. */
uint32_t crc32_update(uint32_t crc, const void *data, size_t size);

uint32_t get_u32(const uint8_t *bytes);
void put_u32(uint8_t *bytes, uint32_t value);
void put_u64(uint8_t *bytes, uint64_t value);

/* Write header and CRC before a payload that already lies at out + FRAME_HEADER; returns the frame's size. */
size_t frame_seal(uint8_t *out, uint8_t type, uint8_t flags, uint32_t stream, size_t length);

/* A push parser. Out of sync it discards everything up to a valid HELLO. */
struct frame_parser {
	bool synced;
	size_t used;
	uint8_t buffer[FRAME_MAX];
};

/* Called with each valid frame; false says that the frame makes no sense and sync is lost. */
typedef bool (*frame_handler)(void *context, const struct frame *frame);

/* Parse `size` bytes. Returns false when sync was lost on the way (the rest was scanned for a HELLO all the same). */
bool frame_feed(struct frame_parser *parser, const uint8_t *data, size_t size, frame_handler handler, void *context);

#endif
