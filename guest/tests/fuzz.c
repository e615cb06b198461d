/* Random and nearly valid bytes against the parsers, under the sanitizers: `fuzz ROUNDS [SEED]`. */
#include "dns.h"
#include "frame.h"
#include "kbl.h"
#include "params.h"
#include "tar.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state;

/* xorshift64* (Vigna, 2016) */
static uint32_t chance(uint32_t below)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return (uint32_t)((state * 2685821657736338717ull) >> 32) % below;
}

static bool on_frame(void *context, const struct frame *frame)
{
	struct params params = {(const char *)frame->payload, frame->length};
	size_t *count = context;
	++*count;
	if (frame->length > FRAME_PAYLOAD_MAX || frame->type < FRAME_HELLO || frame->type > FRAME_TYPE_LAST)
		abort();
	if (params_valid(&params)) {
		params_number(&params, "rows", 1, 100, 0);
		free(params_all(&params, "argv"));
	}
	return chance(50) != 0;
}

static size_t good_frame(uint8_t *out)
{
	size_t length = chance(4) ? chance(64) : chance(FRAME_PAYLOAD_MAX + 1);
	for (size_t i = 0; i < length; i++)
		out[FRAME_HEADER + i] = chance(4) ? (uint8_t)"argv=\0rows=9"[chance(13)] : (uint8_t)chance(256);
	if (chance(5) == 0) {
		memcpy(out + FRAME_HEADER, HELLO_MAGIC, 16);
		return frame_seal(out, FRAME_HELLO, 0, 0, HELLO_PAYLOAD);
	}
	return frame_seal(out, 1 + chance(FRAME_TYPE_LAST), chance(256), chance(8), length);
}

static void fuzz_frames(struct frame_parser *parser, size_t *count)
{
	static uint8_t data[FRAME_MAX];
	size_t size = good_frame(data);
	for (uint32_t hits = chance(3) ? 0 : chance(4); hits > 0; hits--)
		data[chance(size)] ^= 1 << chance(8);
	size_t cut = chance(6) ? size : chance(size);
	for (size_t at = 0; at < cut;) {
		size_t part = 1 + chance(cut - at);
		frame_feed(parser, data + at, part, on_frame, count);
		at += part;
	}
}

static void fuzz_others(void)
{
	static struct tar_entry entry;
	uint8_t data[TAR_BLOCK];
	unsigned seen = 0;
	size_t size = 1 + chance(sizeof data);
	for (size_t i = 0; i < sizeof data; i++)
		data[i] = chance(3) ? (uint8_t)"0123 \n=path{}[]\",:\\u"[chance(20)] : (uint8_t)chance(256);
	tar_parse_header(data, &entry);
	tar_parse_pax((char *)data, size, &entry, &seen);
	json_print_lines((char *)data, size);
	dns_answer_limit(data, size);
	dns_truncate(data, size);
	data[2] &= 0x7f;
	dns_servfail(data, size);
	data[size - 1] = 0;
	tar_clean_path((char *)data);
}

int main(int argc, char **argv)
{
	static struct frame_parser parser;
	long rounds = argc > 1 ? atol(argv[1]) : 10000;
	size_t count = 0;
	state = argc > 2 ? strtoull(argv[2], NULL, 0) : 0x9e3779b97f4a7c15ull;
	if (freopen("/dev/null", "w", stdout) == NULL)
		return 1;
	for (long i = 0; i < rounds; i++) {
		fuzz_frames(&parser, &count);
		fuzz_others();
	}
	fprintf(stderr, "%ld rounds, %zu frames delivered\n", rounds, count);
	return count > 0 ? 0 : 1;
}
