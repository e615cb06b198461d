/* `kbl`: the in-guest API for shells. It speaks HTTP/1.0-style requests (connection closed after the answer) over the
 * agent's socket, so that it works in images that have no HTTP client. */
#define _GNU_SOURCE
#include "kbl.h"

#include "relay.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { ANSWER_MAX = 4 * 1024 * 1024, EXIT_USAGE = 2 };

static const char usage[] =
	"usage: kbl self|sync [-o lines|json]\n"
	"\n"
	"  self    what this lifeform is: name, uid, epoch, node, rack, segment, why it was started\n"
	"  sync    return when everything written so far is safe on other racks, and tell where\n";

static int complain(const char *what)
{
	fprintf(stderr, "kbl: %s: %s\n", what, strerror(errno));
	return -1;
}

static int connect_api(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = API_SOCKET};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
		return fd;
	return complain("cannot reach " API_SOCKET);
}

/* The whole answer, NUL-terminated. */
static char *read_all(int fd, size_t *size)
{
	char *all = malloc(ANSWER_MAX + 1);
	ssize_t count;
	*size = 0;
	while (all && *size < ANSWER_MAX && (count = read(fd, all + *size, ANSWER_MAX - *size)) != 0) {
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0) {
			complain("cannot read the answer");
			free(all);
			return NULL;
		}
		*size += count;
	}
	if (all)
		all[*size] = 0;
	return all;
}

/* Join the chunks of a chunked body (RFC 9112, 7.1) in place; the new size. */
static size_t join_chunks(char *body, size_t size)
{
	char *in = body, *out = body, *end = body + size;
	while (in < end) {
		char *line_end = strstr(in, "\r\n");
		unsigned long length = strtoul(in, NULL, 16);
		if (line_end == NULL || length == 0 || length > (size_t)(end - line_end - 2))
			break;
		memmove(out, line_end + 2, length);
		out += length;
		in = line_end + 2 + length + 2;
	}
	return out - body;
}

static int print_body(const char *body, size_t size, bool json)
{
	if (!json && json_print_lines(body, size) == 0)
		return 0;
	fwrite(body, 1, size, stdout);
	if (size && body[size - 1] != '\n')
		putchar('\n');
	return 0;
}

static int print_answer(char *answer, size_t size, bool json)
{
	int code = 0;
	char *body = strstr(answer, "\r\n\r\n");
	if (sscanf(answer, "HTTP/1.%*1d %d", &code) != 1 || body == NULL) {
		fprintf(stderr, "kbl: %s\n", size ? "the answer is not HTTP" : "the node does not answer at the moment; try again");
		return 1;
	}
	*body = 0;
	body += 4;
	size -= body - answer;
	if (strcasestr(answer, "\r\ntransfer-encoding: chunked"))
		size = join_chunks(body, size);
	if (code == 200)
		return print_body(body, size, json);
	fprintf(stderr, "kbl: the node answers %d: %.*s\n", code, (int)size, body);
	return 1;
}

static int ask(const char *method, const char *path, bool json)
{
	int fd = connect_api();
	if (fd < 0)
		return 1;
	dprintf(fd, "%s %s HTTP/1.1\r\nHost: primordia\r\nAccept: application/json\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
	        method, path);
	size_t size;
	char *answer = read_all(fd, &size);
	close(fd);
	int code = answer ? print_answer(answer, size, json) : 1;
	free(answer);
	return code;
}

int kbl_main(int argc, char **argv)
{
	bool json = false;
	const char *verb = NULL;
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "-o") == 0 && i + 1 < argc && (strcmp(argv[i + 1], "json") == 0 || strcmp(argv[i + 1], "lines") == 0)) {
			json = strcmp(argv[++i], "json") == 0;
		} else if (strcmp(argv[i], "-h") == 0 || strcmp(argv[i], "--help") == 0) {
			fputs(usage, stdout);
			return 0;
		} else if (verb == NULL && argv[i][0] != '-') {
			verb = argv[i];
		} else {
			fprintf(stderr, "kbl: unexpected %s\n%s", argv[i], usage);
			return EXIT_USAGE;
		}
	}
	if (verb && strcmp(verb, "self") == 0)
		return ask("GET", "/v1/self", json);
	if (verb && strcmp(verb, "sync") == 0)
		return ask("POST", "/v1/sync", json);
	if (verb)
		fprintf(stderr, "kbl: unknown command %s\n", verb);
	fputs(usage, stderr);
	return EXIT_USAGE;
}
