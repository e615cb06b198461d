/* A socket bound to a stream: TCP connections made for the host, and connections of programs to the in-guest API and
 * the name server, which become streams to the host. */
#define _GNU_SOURCE
#include "relay.h"

#include "agent.h"
#include "bytes.h"
#include "calls.h"
#include "dns.h"
#include "group.h"
#include "loop.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
	CONNECT_MS = 10000,
	LINGER_MS = 10000, /* for a peer that does not take its last bytes */
	BACKLOG = 64,
};

struct relay {
	struct stream stream;
	struct source socket;
	struct timer timer;
	struct bytes pending; /* from the host, for the socket */
	bool connecting, readable, read_ended, write_ending, write_ended, gone;
	bool stirred; /* the interpreter goes on for as long as this lasts */
};

static void relay_free(struct relay *relay)
{
	timer_clear(&relay->timer);
	source_close(&relay->socket);
	bytes_free(&relay->pending);
	loop_free(relay);
}

static void finish_if_done(struct relay *relay)
{
	if (relay->gone) {
		if (relay->pending.used == 0 || relay->write_ended)
			relay_free(relay);
	} else if (relay->read_ended && relay->write_ended) {
		stream_close(&relay->stream);
	}
}

static void flush(struct relay *relay)
{
	size_t before = relay->pending.used;
	if (bytes_flush(&relay->pending, relay->socket.fd) < 0) {
		bytes_free(&relay->pending);
		relay->write_ended = true;
	}
	if (!relay->gone)
		stream_consumed(&relay->stream, before - relay->pending.used);
	if (relay->write_ending && relay->pending.used == 0 && !relay->write_ended) {
		shutdown(relay->socket.fd, SHUT_WR);
		relay->write_ended = true;
	}
	finish_if_done(relay);
}

static void on_connected(struct relay *relay)
{
	int error = 0;
	socklen_t size = sizeof error;
	getsockopt(relay->socket.fd, SOL_SOCKET, SO_ERROR, &error, &size);
	relay->connecting = false;
	timer_clear(&relay->timer);
	if (error) {
		answer_error(&relay->stream.answer, error, "cannot connect");
		stream_refuse(&relay->stream);
	} else {
		stream_opened(&relay->stream);
	}
}

static void on_socket(struct source *source, uint32_t events)
{
	struct relay *relay = OWNER(source, struct relay, socket);
	if (relay->connecting) {
		if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
			return;
		on_connected(relay);
	}
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
		relay->readable = true;
		if (!relay->gone)
			stream_ready(&relay->stream);
	}
	if (events & (EPOLLOUT | EPOLLERR) && (relay->pending.used || relay->gone))
		flush(relay);
}

static size_t produce(struct stream *stream, uint8_t *payload, size_t room, uint8_t *channel)
{
	struct relay *relay = OWNER(stream, struct relay, stream);
	*channel = 0;
	while (!relay->connecting && relay->readable && !relay->read_ended) {
		ssize_t count = read(relay->socket.fd, payload, room);
		if (count > 0)
			return count;
		if (count < 0 && errno == EINTR)
			continue;
		relay->readable = false;
		if (count == 0 || errno != EAGAIN) {
			relay->read_ended = true;
			stream_eof(stream);
			finish_if_done(relay);
		}
	}
	return 0;
}

static void on_data(struct stream *stream, const uint8_t *data, size_t size)
{
	struct relay *relay = OWNER(stream, struct relay, stream);
	if (relay->write_ended || relay->write_ending || !bytes_append(&relay->pending, data, size))
		stream_consumed(stream, size);
	else
		flush(relay);
}

static void on_eof(struct stream *stream)
{
	struct relay *relay = OWNER(stream, struct relay, stream);
	relay->write_ending = true;
	flush(relay);
}

static void give_up(struct timer *timer)
{
	relay_free(OWNER(timer, struct relay, timer));
}

/* The host has closed: what it sent before still goes to the peer. */
static void on_gone(struct stream *stream, bool by_host)
{
	struct relay *relay = OWNER(stream, struct relay, stream);
	relay->gone = true;
	if (relay->stirred)
		group_settle();
	if (!by_host || relay->connecting) {
		relay_free(relay);
		return;
	}
	relay->write_ending = true;
	timer_set(&relay->timer, LINGER_MS, give_up);
	flush(relay);
}

static const struct stream_ops relay_ops = {
	.produce = produce,
	.on_data = on_data,
	.on_eof = on_eof,
	.on_gone = on_gone,
};

static struct relay *relay_new(int fd)
{
	struct relay *relay = calloc(1, sizeof *relay);
	if (relay && source_add(&relay->socket, fd, on_socket))
		return relay;
	free(relay);
	close(fd);
	return NULL;
}

/* ---- connections made for the host ---- */

static void connect_late(struct timer *timer)
{
	struct relay *relay = OWNER(timer, struct relay, timer);
	answer_error(&relay->stream.answer, ETIMEDOUT, "cannot connect");
	stream_refuse(&relay->stream);
}

void tcp_open(uint32_t id, const struct params *params)
{
	const char *host = params_get(params, "host");
	struct sockaddr_in address = {.sin_family = AF_INET};
	address.sin_port = htons((uint16_t)params_number(params, "port", 1, 65535, 0));
	if (host == NULL || strcmp(host, "localhost") == 0)
		host = "127.0.0.1";
	if (address.sin_port == 0 || inet_pton(AF_INET, host, &address.sin_addr) != 1) {
		call_refused(id, EINVAL, "tcp needs a port and an IPv4 address");
		return;
	}
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int error = fd < 0 || (connect(fd, (struct sockaddr *)&address, sizeof address) != 0 && errno != EINPROGRESS) ? errno : 0;
	struct relay *relay = error ? NULL : relay_new(fd);
	if (relay == NULL) {
		if (error && fd >= 0)
			close(fd);
		call_refused(id, error ? error : ENOMEM, "cannot connect to %s", host);
		return;
	}
	relay->connecting = true;
	stream_accept(&relay->stream, id, &relay_ops);
	timer_set(&relay->timer, CONNECT_MS, connect_late);
}

/* NULL with an errno. */
static struct relay *unix_connect(const char *path, int *error)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	strcpy(address.sun_path, path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	*error = fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0 ? errno : 0;
	struct relay *relay = *error ? NULL : relay_new(fd);
	if (*error && fd >= 0)
		close(fd);
	*error = relay || *error ? *error : ENOMEM;
	return relay;
}

void unix_open(uint32_t id, const struct params *params)
{
	const char *path = params_get(params, "path");
	int error;
	if (path == NULL || *path != '/' || strlen(path) >= sizeof ((struct sockaddr_un *)0)->sun_path) {
		call_refused(id, EINVAL, "unix needs an absolute path of less than %zu bytes", sizeof ((struct sockaddr_un *)0)->sun_path);
		return;
	}
	struct relay *relay = unix_connect(path, &error);
	if (relay == NULL) {
		call_refused(id, error, "cannot connect to %s", path);
		return;
	}
	stream_accept(&relay->stream, id, &relay_ops);
	stream_opened(&relay->stream);
}

/* As `unix` to the warmed interpreter, which goes on meanwhile although the user processes stand. */
void stir_open(uint32_t id, const struct params *params)
{
	(void)params;
	int error = group_stir();
	if (error) {
		call_refused(id, error, "no interpreter waits here alone");
		return;
	}
	struct relay *relay = unix_connect(INTERPRETER_SOCKET, &error);
	if (relay == NULL) {
		group_settle();
		call_refused(id, error, "cannot connect to the interpreter");
		return;
	}
	relay->stirred = true;
	stream_accept(&relay->stream, id, &relay_ops);
	stream_opened(&relay->stream);
}

/* ---- listeners for the guest's programs ---- */

struct listener {
	struct source source;
	const char *kind, *transport;
};

static void on_connection(struct source *source, uint32_t events)
{
	struct listener *listener = OWNER(source, struct listener, source);
	(void)events;
	for (;;) {
		int fd = accept4(source->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0)
			return;
		struct relay *relay = relay_new(fd);
		if (relay == NULL)
			continue;
		if (!stream_open(&relay->stream, &relay_ops, listener->kind)) {
			relay_free(relay); /* no host, or too many: a clean close */
			continue;
		}
		answer_add(&relay->stream.answer, "transport", "%s", listener->transport);
	}
}

static void listen_on(struct listener *listener, const struct sockaddr *address, socklen_t size)
{
	int on = 1;
	int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd >= 0)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (fd < 0 || bind(fd, address, size) != 0 || listen(fd, BACKLOG) != 0 ||
	    !source_add(&listener->source, fd, on_connection)) {
		agent_log("cannot listen for %s on %s: %s", listener->kind, listener->transport, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
}

void listeners_start(void)
{
	static struct listener api_socket = {.kind = "api", .transport = "unix"};
	static struct listener api_tcp = {.kind = "api", .transport = "tcp"};
	static struct listener dns_tcp = {.kind = "dns", .transport = "tcp"};
	struct sockaddr_un path = {.sun_family = AF_UNIX, .sun_path = API_SOCKET};
	struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(80)};
	inet_pton(AF_INET, OWN_ADDRESS, &own.sin_addr);
	unlink(API_SOCKET);
	listen_on(&api_socket, (struct sockaddr *)&path, sizeof path);
	if (chmod(API_SOCKET, 0666) != 0)
		agent_log("cannot open %s to all users", API_SOCKET);
	listen_on(&api_tcp, (struct sockaddr *)&own, sizeof own);
	own.sin_port = htons(53);
	listen_on(&dns_tcp, (struct sockaddr *)&own, sizeof own);
	dns_start(&own);
}
