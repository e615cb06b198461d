/* JSON (RFC 8259) to lines for people: {"node": {"name": "n1"}} becomes `node.name: n1`. */
#define _GNU_SOURCE
#include "kbl.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { DEPTH_MAX = 32, PATH_ROOM = 512 };

struct reader {
	const char *at, *end;
	char path[PATH_ROOM];
	size_t path_used;
	int depth;
};

static bool read_value(struct reader *reader);

static char peek(struct reader *reader)
{
	while (reader->at < reader->end && strchr(" \t\r\n", *reader->at) && *reader->at)
		reader->at++;
	return reader->at < reader->end ? *reader->at : 0;
}

static bool accept(struct reader *reader, char wanted)
{
	if (peek(reader) != wanted)
		return false;
	reader->at++;
	return true;
}

static int put_utf8(char *out, unsigned code)
{
	if (code < 0x80)
		return out[0] = code, 1;
	if (code < 0x800)
		return out[0] = 0xc0 | code >> 6, out[1] = 0x80 | (code & 0x3f), 2;
	return out[0] = 0xe0 | code >> 12, out[1] = 0x80 | (code >> 6 & 0x3f), out[2] = 0x80 | (code & 0x3f), 3;
}

/* One character of a string, unescaped, into `out` (room for 4); its bytes, or -1. */
static int read_character(struct reader *reader, char *out)
{
	static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
	out[0] = *reader->at++;
	if (out[0] != '\\')
		return (unsigned char)out[0] < 0x20 ? -1 : 1;
	if (reader->at == reader->end)
		return -1;
	char kind = *reader->at++;
	unsigned code;
	if (kind == 'u') {
		char digits[5] = "";
		if (reader->end - reader->at < 4)
			return -1;
		memcpy(digits, reader->at, 4);
		reader->at += 4;
		return strspn(digits, "0123456789abcdefABCDEF") == 4 && sscanf(digits, "%x", &code) == 1 ? put_utf8(out, code) : -1;
	}
	const char *known = kind ? strchr(from, kind) : NULL;
	return known ? out[0] = to[known - from], 1 : -1;
}

/* A string to the path, or, without `to_path`, to the output, control characters as `?`. */
static bool read_string(struct reader *reader, bool to_path)
{
	char bytes[4];
	if (!accept(reader, '"'))
		return false;
	while (reader->at < reader->end && *reader->at != '"') {
		int count = read_character(reader, bytes);
		if (count < 0)
			return false;
		if (count == 1 && iscntrl((unsigned char)bytes[0]) && !to_path)
			bytes[0] = '?';
		if (!to_path)
			fwrite(bytes, 1, count, stdout);
		else if (reader->path_used + count < PATH_ROOM)
			memcpy(reader->path + reader->path_used, bytes, count), reader->path_used += count;
	}
	return reader->at < reader->end && *reader->at++ == '"';
}

static bool read_members(struct reader *reader, bool object)
{
	size_t base = reader->path_used;
	char closing = object ? '}' : ']';
	reader->at++;
	if (accept(reader, closing))
		return true;
	for (unsigned number = 0;; number++) {
		reader->path_used = base;
		if (base && base + 1 < PATH_ROOM)
			reader->path[reader->path_used++] = '.';
		if (!object)
			reader->path_used += snprintf(reader->path + reader->path_used, PATH_ROOM - reader->path_used, "%u", number);
		if (reader->path_used >= PATH_ROOM)
			return false;
		if ((object && (!read_string(reader, true) || !accept(reader, ':'))) || !read_value(reader))
			return false;
		if (accept(reader, closing))
			break;
		if (!accept(reader, ','))
			return false;
	}
	reader->path_used = base;
	return true;
}

static bool read_scalar(struct reader *reader)
{
	printf("%.*s%s", (int)reader->path_used, reader->path, reader->path_used ? ": " : "");
	if (peek(reader) == '"') {
		bool whole = read_string(reader, false);
		putchar('\n');
		return whole;
	}
	const char *start = reader->at;
	while (reader->at < reader->end && (isalnum((unsigned char)*reader->at) || strchr("+-.", *reader->at)) && *reader->at)
		reader->at++;
	printf("%.*s\n", (int)(reader->at - start), start);
	return reader->at > start;
}

static bool read_value(struct reader *reader)
{
	char first = peek(reader);
	if (first != '{' && first != '[')
		return first && read_scalar(reader);
	if (++reader->depth > DEPTH_MAX)
		return false;
	bool whole = read_members(reader, first == '{');
	reader->depth--;
	return whole;
}

int json_print_lines(const char *text, size_t size)
{
	struct reader reader = {.at = text, .end = text + size};
	return read_value(&reader) && peek(&reader) == 0 && reader.at == reader.end ? 0 : -1;
}
