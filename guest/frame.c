#include "frame.h"

#include <string.h>

const uint8_t HELLO_MAGIC[16] = {'p', 'r', 'i', 'm', 'o', 'r', 'd', 'i', 'a', '-', 'h', 'e', 'l', 'l', 'o', 0xa5};

static uint32_t crc_table[8][256];

/* Slicing-by-8 (Kounavis and Berry, 2005): eight table lookups for eight bytes instead of a loop over each. */
static void crc_prepare(void)
{
	for (uint32_t byte = 0; byte < 256; byte++) {
		uint32_t crc = byte;
		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ (crc & 1 ? 0xEDB88320u : 0);
		crc_table[0][byte] = crc;
	}
	for (int slice = 1; slice < 8; slice++)
		for (int byte = 0; byte < 256; byte++) {
			uint32_t below = crc_table[slice - 1][byte];
			crc_table[slice][byte] = (below >> 8) ^ crc_table[0][below & 0xff];
		}
}

uint32_t crc32_update(uint32_t crc, const void *data, size_t size)
{
	const uint8_t *at = data;
	if (crc_table[0][1] == 0)
		crc_prepare();
	crc = ~crc;
	for (; size >= 8; size -= 8, at += 8) {
		uint32_t low = get_u32(at) ^ crc;
		uint32_t high = get_u32(at + 4);
		crc = crc_table[7][low & 0xff] ^ crc_table[6][low >> 8 & 0xff] ^ crc_table[5][low >> 16 & 0xff] ^
		      crc_table[4][low >> 24] ^ crc_table[3][high & 0xff] ^ crc_table[2][high >> 8 & 0xff] ^
		      crc_table[1][high >> 16 & 0xff] ^ crc_table[0][high >> 24];
	}
	while (size--)
		crc = (crc >> 8) ^ crc_table[0][(crc ^ *at++) & 0xff];
	return ~crc;
}

uint32_t get_u32(const uint8_t *bytes)
{
	return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

void put_u32(uint8_t *bytes, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		bytes[i] = value >> 8 * i;
}

void put_u64(uint8_t *bytes, uint64_t value)
{
	put_u32(bytes, value);
	put_u32(bytes + 4, value >> 32);
}

static uint32_t frame_crc(const uint8_t *frame, size_t length)
{
	return crc32_update(crc32_update(0, frame, 8), frame + FRAME_HEADER, length);
}

size_t frame_seal(uint8_t *out, uint8_t type, uint8_t flags, uint32_t stream, size_t length)
{
	out[0] = type;
	out[1] = flags;
	out[2] = length;
	out[3] = length >> 8;
	put_u32(out + 4, stream);
	put_u32(out + 8, frame_crc(out, length));
	return FRAME_HEADER + length;
}

static size_t payload_length(const uint8_t *header)
{
	return header[2] | (size_t)header[3] << 8;
}

static bool deliver(struct frame_parser *parser, frame_handler handler, void *context)
{
	const uint8_t *header = parser->buffer;
	struct frame frame = {
		.type = header[0],
		.flags = header[1],
		.length = payload_length(header),
		.stream = get_u32(header + 4),
		.payload = header + FRAME_HEADER,
	};
	parser->used = 0;
	return handler(context, &frame);
}

static bool take(struct frame_parser *parser, size_t wanted, const uint8_t **data, size_t *size)
{
	size_t count = wanted - parser->used < *size ? wanted - parser->used : *size;
	memcpy(parser->buffer + parser->used, *data, count);
	parser->used += count;
	*data += count;
	*size -= count;
	return parser->used == wanted;
}

static bool is_hello(const uint8_t *frame)
{
	static const uint8_t start[8] = {FRAME_HELLO, 0, HELLO_PAYLOAD, 0, 0, 0, 0, 0};
	return memcmp(frame, start, sizeof start) == 0 && memcmp(frame + FRAME_HEADER, HELLO_MAGIC, sizeof HELLO_MAGIC) == 0 &&
	       frame_crc(frame, HELLO_PAYLOAD) == get_u32(frame + 8);
}

/* Slide a window of one HELLO over the bytes; true when it holds one. */
static bool find_hello(struct frame_parser *parser, const uint8_t **data, size_t *size)
{
	while (take(parser, FRAME_HEADER + HELLO_PAYLOAD, data, size)) {
		if (is_hello(parser->buffer))
			return true;
		const uint8_t *next = memchr(parser->buffer + 1, FRAME_HELLO, parser->used - 1);
		size_t keep = next ? parser->used - (size_t)(next - parser->buffer) : 0;
		memmove(parser->buffer, parser->buffer + parser->used - keep, keep);
		parser->used = keep;
	}
	return false;
}

/* 1: a whole valid frame lies in the buffer; 0: more bytes are needed; -1: this is no frame. */
static int find_frame(struct frame_parser *parser, const uint8_t **data, size_t *size)
{
	if (parser->used < FRAME_HEADER && !take(parser, FRAME_HEADER, data, size))
		return 0;
	size_t length = payload_length(parser->buffer);
	if (parser->buffer[0] < FRAME_HELLO || parser->buffer[0] > FRAME_TYPE_LAST || length > FRAME_PAYLOAD_MAX)
		return -1;
	if (!take(parser, FRAME_HEADER + length, data, size))
		return 0;
	return frame_crc(parser->buffer, length) == get_u32(parser->buffer + 8) ? 1 : -1;
}

bool frame_feed(struct frame_parser *parser, const uint8_t *data, size_t size, frame_handler handler, void *context)
{
	bool kept = true;
	while (size > 0) {
		if (!parser->synced) {
			if (!find_hello(parser, &data, &size))
				return kept;
			parser->synced = true;
		} else {
			int found = find_frame(parser, &data, &size);
			if (found == 0)
				return kept;
			if (found < 0) {
				parser->synced = false;
				parser->used = 0;
				kept = false;
				continue;
			}
		}
		if (!deliver(parser, handler, context)) {
			parser->synced = false;
			kept = false;
		}
	}
	return kept;
}
