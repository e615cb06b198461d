/* The agent's pure parts, checked without a machine; the golden frames are given as arguments. */
#define _GNU_SOURCE
#include "bytes.h"
#include "dns.h"
#include "frame.h"
#include "kbl.h"
#include "params.h"
#include "tar.h"
#include "user.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int failures;

#define CHECK(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what); \
			failures++; \
		} \
	} while (0)

/* ---- frames ---- */

struct seen {
	int count;
	struct frame last;
	uint8_t payload[FRAME_PAYLOAD_MAX];
	bool refuse;
};

static bool on_frame(void *context, const struct frame *frame)
{
	struct seen *seen = context;
	seen->count++;
	seen->last = *frame;
	memcpy(seen->payload, frame->payload, frame->length);
	return !seen->refuse;
}

static size_t hello(uint8_t *out)
{
	memcpy(out + FRAME_HEADER, HELLO_MAGIC, 16);
	put_u32(out + FRAME_HEADER + 16, PROTOCOL_VERSION);
	memset(out + FRAME_HEADER + 20, 7, 16);
	return frame_seal(out, FRAME_HELLO, 0, 0, HELLO_PAYLOAD);
}

static void check_golden(const char *path)
{
	static uint8_t frame[FRAME_MAX], payload[FRAME_MAX], sealed[FRAME_MAX];
	static char line[2 * FRAME_MAX + 64];
	static struct frame_parser parser;
	static struct seen seen;
	unsigned type = 0, flags = 0, stream = 0;
	long payload_size = 0, frame_size = 0;
	FILE *file = fopen(path, "r");
	CHECK(file != NULL);
	while (file && fgets(line, sizeof line, file)) {
		line[strcspn(line, "\n")] = 0;
		sscanf(line, "type %u", &type);
		sscanf(line, "flags %u", &flags);
		sscanf(line, "stream %u", &stream);
		if (strncmp(line, "payload ", 8) == 0)
			payload_size = hex_decode(line + 8, strlen(line + 8), payload);
		if (strncmp(line, "frame ", 6) == 0)
			frame_size = hex_decode(line + 6, strlen(line + 6), frame);
	}
	if (file)
		fclose(file);
	memcpy(sealed + FRAME_HEADER, payload, payload_size);
	CHECK(frame_size == (long)frame_seal(sealed, type, flags, stream, payload_size));
	CHECK(memcmp(sealed, frame, frame_size) == 0);
	memset(&seen, 0, sizeof seen);
	parser.synced = type != FRAME_HELLO;
	parser.used = 0;
	for (long i = 0; i < frame_size; i++)
		CHECK(frame_feed(&parser, frame + i, 1, on_frame, &seen));
	CHECK(seen.count == 1 && seen.last.type == type && seen.last.flags == flags && seen.last.stream == stream);
	CHECK(seen.last.length == payload_size && memcmp(seen.payload, payload, payload_size) == 0);
}

static void check_sync(void)
{
	static uint8_t filler[FRAME_MAX + 1], frame[FRAME_MAX], start[128];
	static struct frame_parser parser;
	static struct seen seen;
	size_t size = hello(start);
	CHECK(crc32_update(0, "123456789", 9) == 0xCBF43926u);
	/* nothing but a HELLO is heard at first */
	memcpy(frame + FRAME_HEADER, "data", 4);
	size_t data = frame_seal(frame, FRAME_DATA, 0, 1, 4);
	frame_feed(&parser, frame, data, on_frame, &seen);
	CHECK(seen.count == 0);
	CHECK(frame_feed(&parser, start, size, on_frame, &seen) && seen.count == 1);
	CHECK(frame_feed(&parser, frame, data, on_frame, &seen) && seen.count == 2);
	/* a host that died in mid-frame: its half is never delivered, whatever it said, and the next HELLO is found */
	for (size_t cut = 1; cut < data; cut++) {
		frame_feed(&parser, frame, cut, on_frame, &seen);
		CHECK(!frame_feed(&parser, filler, sizeof filler, on_frame, &seen));
		CHECK(frame_feed(&parser, start, size, on_frame, &seen));
		CHECK(seen.count == 2 + (int)cut && seen.last.type == FRAME_HELLO);
	}
	/* a half frame that announces the longest payload, holding a HELLO of its own */
	size_t big = frame_seal(frame, FRAME_DATA, 0, 1, FRAME_PAYLOAD_MAX);
	memcpy(frame + 100, start, size);
	int before = seen.count;
	frame_feed(&parser, frame, big - 5, on_frame, &seen);
	frame_feed(&parser, filler, sizeof filler, on_frame, &seen);
	frame_feed(&parser, start, size, on_frame, &seen);
	CHECK(seen.count == before + 1);
	/* a handler's no ends sync */
	seen.refuse = true;
	CHECK(!frame_feed(&parser, start, size, on_frame, &seen) && !parser.synced);
}

/* ---- parameters, users ---- */

static void check_params(void)
{
	static const char data[] = "kind=exec\0argv=ls\0argv=-l\0env=A=B\0rows=24\0empty=";
	struct params params = {data, sizeof data};
	CHECK(params_valid(&params));
	CHECK(strcmp(params_get(&params, "argv"), "ls") == 0);
	CHECK(strcmp(params_get(&params, "env"), "A=B") == 0);
	CHECK(*params_get(&params, "empty") == 0 && params_get(&params, "arg") == NULL);
	CHECK(params_number(&params, "rows", 1, 100, 5) == 24 && params_number(&params, "rows", 1, 10, 5) == 5);
	CHECK(params_number(&params, "kind", 1, 10, 5) == 5 && params_number(&params, "none", 1, 10, 5) == 5);
	char **all = params_all(&params, "argv");
	CHECK(strcmp(all[1], "-l") == 0 && all[2] == NULL);
	free(all);
	CHECK(!params_valid(&(struct params){"a=b", 3}) && !params_valid(&(struct params){"ab\0", 3}));
	CHECK(!params_valid(&(struct params){"=b\0", 3}) && params_valid(&(struct params){"", 0}));
	uint8_t bytes[4];
	CHECK(hex_decode("00fFa5", 6, bytes) == 3 && bytes[1] == 0xff && bytes[2] == 0xa5);
	CHECK(hex_decode("0", 1, bytes) == -1 && hex_decode("0g", 2, bytes) == -1);
	struct answer answer = {0};
	answer_error(&answer, ENOENT, "cannot start %s", "x");
	CHECK(strcmp(answer.data, "error=ENOENT") == 0);
	CHECK(strcmp(answer.data + 13, "message=cannot start x: No such file or directory") == 0);
	for (int i = 0; i < 100; i++)
		answer_add(&answer, "key", "%050d", i);
	CHECK(answer.used <= sizeof answer.data && answer.data[answer.used - 1] == 0);
}

static const char *write_file(char *path, const char *content)
{
	int fd = mkstemp(path);
	CHECK(fd >= 0 && write(fd, content, strlen(content)) == (ssize_t)strlen(content));
	close(fd);
	return path;
}

static void check_users(void)
{
	char passwd_path[] = "/tmp/primordia-check-XXXXXX", group_path[] = "/tmp/primordia-check-XXXXXX";
	const char *passwd = write_file(passwd_path, "broken\nroot:x:0:0::/root:/bin/sh\nred:x:100:101:R:/var/red:/bin/false\n");
	const char *group = write_file(group_path, "root:x:0:\nred:x:101:\nlog:x:7:blue,red\ntape:x:26:redder\n");
	struct user user;
	CHECK(user_resolve("", passwd, group, &user) == 0 && user.uid == 0 && strcmp(user.home, "/root") == 0);
	CHECK(user_resolve("red", passwd, group, &user) == 0 && user.uid == 100 && user.gid == 101);
	CHECK(user.group_count == 2 && user.groups[0] == 101 && user.groups[1] == 7 && strcmp(user.home, "/var/red") == 0);
	CHECK(user_resolve("100", passwd, group, &user) == 0 && user.gid == 101);
	CHECK(user_resolve("red:log", passwd, group, &user) == 0 && user.gid == 7 && user.group_count == 0);
	CHECK(user_resolve("5000:26", passwd, group, &user) == 0 && user.uid == 5000 && user.gid == 26);
	CHECK(strcmp(user.home, "/") == 0);
	CHECK(user_resolve("green", passwd, group, &user) == ENOENT && user_resolve("red:green", passwd, group, &user) == ENOENT);
	CHECK(user_resolve("4294967295", passwd, group, &user) == ENOENT && user_resolve("-1", passwd, group, &user) == ENOENT);
	CHECK(user_resolve("7", "/nowhere", "/nowhere", &user) == 0 && user.uid == 7 && user.gid == 0);
	CHECK(user_resolve("red", "/nowhere", "/nowhere", &user) == ENOENT);
	unlink(passwd);
	unlink(group);
}

/* ---- DNS, tar, JSON ---- */

static size_t query(uint8_t *out, unsigned edns)
{
	static const uint8_t head[] = {0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, 'd', 'b', 0, 0, 1, 0, 1};
	static const uint8_t opt[] = {0, 0, 41, 0, 0, 0, 0, 0, 0, 0, 0};
	memcpy(out, head, sizeof head);
	if (edns == 0)
		return sizeof head;
	memcpy(out + sizeof head, opt, sizeof opt);
	out[11] = 1;
	out[sizeof head + 3] = edns >> 8;
	out[sizeof head + 4] = edns;
	return sizeof head + sizeof opt;
}

static void check_dns(void)
{
	uint8_t message[128];
	CHECK(dns_answer_limit(message, query(message, 0)) == 512);
	CHECK(dns_answer_limit(message, query(message, 1000)) == 1000);
	CHECK(dns_answer_limit(message, query(message, 4096)) == DNS_UDP_MAX);
	CHECK(dns_answer_limit(message, query(message, 100)) == 512);
	CHECK(dns_answer_limit(message, 5) == 512);
	size_t size = query(message, 1000);
	for (size_t cut = 0; cut < size; cut++)
		dns_answer_limit(message, cut); /* the sanitizer watches */
	CHECK(dns_servfail(message, size) == 20 && message[2] == 0x81 && message[3] == 2 && message[11] == 0);
	CHECK(dns_servfail(message, 20) == 0); /* an answer is not answered */
	size = query(message, 1000);
	CHECK(dns_truncate(message, size) == 20 && message[2] & 2);
	message[12] = 60; /* a name that leaves the message */
	CHECK(dns_truncate(message, size) == 12 && message[5] == 0);
}

static void check_tar(void)
{
	static struct tar_entry in, out;
	static char records[3 * TAR_PATH_MAX];
	uint8_t block[TAR_BLOCK];
	unsigned seen = 0;
	in = (struct tar_entry){.type = TAR_FILE, .mode = 04755, .uid = 12, .gid = 3000000, .size = 9ull << 33, .mtime = -5};
	memset(in.path, 'p', 300);
	strcpy(in.link, "short");
	long size = tar_format_pax(&in, records, sizeof records);
	tar_format_header(&in, block);
	CHECK(tar_parse_header(block, &out) && out.mode == 04755 && out.uid == 12 && out.gid == 0 && strlen(out.path) == 100);
	CHECK(size > 300 && tar_parse_pax(records, size, &out, &seen));
	CHECK(seen == (PAX_PATH | PAX_GID | PAX_SIZE | PAX_MTIME));
	CHECK(strcmp(out.path, in.path) == 0 && out.gid == in.gid && out.size == in.size && out.mtime == -5);
	CHECK(tar_format_pax(&in, records, 50) == -1);
	block[3] ^= 1;
	CHECK(!tar_parse_header(block, &out));
	CHECK(!tar_parse_pax("12 path=abc\n", 11, &out, &seen) && !tar_parse_pax("99999999 path=abc\n", 18, &out, &seen));
	CHECK(!tar_parse_pax("6 a=b", 5, &out, &seen) && !tar_parse_pax("0 a=b\n", 6, &out, &seen));
	CHECK(!tar_parse_pax("12 size=-12\n", 12, &out, &seen));
	char clean[] = "./a//b/./c/", up[] = "a/../b", root[] = "/a", self[] = "./", dots[] = "..a/b..";
	CHECK(tar_clean_path(clean) && strcmp(clean, "a/b/c") == 0);
	CHECK(!tar_clean_path(up) && !tar_clean_path(root));
	CHECK(tar_clean_path(self) && *self == 0 && tar_clean_path(dots));
}

static void check_json(void)
{
	static const char *const bad[] = {"", "{", "[1,]", "{\"a\"}", "{\"a\":1} x", "\"a", "\"\\u12\"", "[[", "{\"a\":}"};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		CHECK(json_print_lines(bad[i], strlen(bad[i])) == -1);
	static const char good[] = "{\"name\": \"shop\", \"node\": {\"rack\": \"r\\u00e9\\n\"}, \"list\": [1, true, null], \"none\": {}}";
	CHECK(json_print_lines(good, strlen(good)) == 0);
}

static void check_bytes(void)
{
	struct bytes bytes = {0};
	int ends[2];
	char text[64];
	CHECK(pipe(ends) == 0);
	for (int i = 0; i < 2000; i++)
		CHECK(bytes_append(&bytes, "0123456789", 10));
	CHECK(bytes.used == 20000 && bytes_flush(&bytes, ends[1]) == 20000 && bytes.data == NULL);
	CHECK(read(ends[0], text, 12) == 12 && memcmp(text, "012345678901", 12) == 0);
	close(ends[0]);
	close(ends[1]);
}

int main(int argc, char **argv)
{
	if (freopen("/dev/null", "w", stdout) == NULL)
		return 1;
	for (int i = 1; i < argc; i++)
		check_golden(argv[i]);
	check_sync();
	check_params();
	check_users();
	check_dns();
	check_tar();
	check_json();
	check_bytes();
	fprintf(stderr, "%d golden frames, %d failures\n", argc - 1, failures);
	return failures ? 1 : 0;
}
