#include "dns.h"

enum {
	FLAG_RESPONSE = 0x80, /* in byte 2 */
	FLAG_TRUNCATED = 0x02,
	RCODE_SERVFAIL = 2, /* in byte 3 */
	TYPE_OPT = 41,
	UDP_PLAIN_MAX = 512,
};

static unsigned get_u16(const uint8_t *at)
{
	return (unsigned)at[0] << 8 | at[1];
}

/* The offset behind the name at `at`, or 0 when it leaves the message. A compression pointer ends a name. */
static size_t skip_name(const uint8_t *message, size_t size, size_t at)
{
	while (at < size) {
		unsigned length = message[at];
		if (length == 0)
			return at + 1;
		if ((length & 0xc0) == 0xc0)
			return at + 2 <= size ? at + 2 : 0;
		at += length + 1;
	}
	return 0;
}

static size_t skip_questions(const uint8_t *message, size_t size)
{
	size_t at = DNS_HEADER;
	for (unsigned left = get_u16(message + 4); left > 0; left--) {
		at = skip_name(message, size, at);
		if (at == 0 || at + 4 > size)
			return 0;
		at += 4;
	}
	return at;
}

size_t dns_answer_limit(const uint8_t *query, size_t size)
{
	if (size < DNS_HEADER)
		return UDP_PLAIN_MAX;
	size_t at = skip_questions(query, size);
	unsigned records = get_u16(query + 6) + get_u16(query + 8) + get_u16(query + 10);
	for (; at && records > 0; records--) {
		at = skip_name(query, size, at);
		if (at == 0 || at + 10 > size)
			break;
		unsigned wanted = get_u16(query + at + 2);
		if (get_u16(query + at) == TYPE_OPT)
			return wanted < UDP_PLAIN_MAX ? UDP_PLAIN_MAX : wanted > DNS_UDP_MAX ? DNS_UDP_MAX : wanted;
		at += 10 + get_u16(query + at + 8);
	}
	return UDP_PLAIN_MAX;
}

static size_t keep_question(uint8_t *message, size_t size)
{
	size_t end = skip_questions(message, size);
	if (end == 0) {
		end = DNS_HEADER;
		message[4] = message[5] = 0;
	}
	for (int i = 6; i < DNS_HEADER; i++)
		message[i] = 0;
	return end;
}

size_t dns_truncate(uint8_t *message, size_t size)
{
	if (size < DNS_HEADER)
		return 0;
	message[2] |= FLAG_TRUNCATED;
	return keep_question(message, size);
}

size_t dns_servfail(uint8_t *message, size_t size)
{
	if (size < DNS_HEADER || message[2] & FLAG_RESPONSE)
		return 0;
	message[2] |= FLAG_RESPONSE;
	message[3] = RCODE_SERVFAIL;
	return keep_question(message, size);
}
