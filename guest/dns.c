#define _GNU_SOURCE
#include "dns.h"

#include "agent.h"
#include "channel.h"
#include "loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
	QUERY_MAX = 4096,
	QUERIES_PER_TURN = 32,
	ANSWER_MS = 5000, /* the patience of a resolver's one try */
	DATAGRAMS_MAX = GUEST_STREAMS_MAX / 2, /* the other half is for connections */
};

struct query {
	struct stream stream;
	struct timer timer;
	struct sockaddr_in client;
	size_t size, sent, received;
	uint8_t message[2 + QUERY_MAX]; /* as on TCP: two bytes of length, then the query */
	uint8_t answer[2 + 65535];
};

static struct source udp = {.fd = -1};
static unsigned queries;

static void send_answer(const struct query *query, const uint8_t *message, size_t size)
{
	if (size > 0)
		sendto(udp.fd, message, size, 0, (const struct sockaddr *)&query->client, sizeof query->client);
}

static void send_failure(struct query *query)
{
	send_answer(query, query->message + 2, dns_servfail(query->message + 2, query->size - 2));
}

static size_t produce(struct stream *stream, uint8_t *payload, size_t room, uint8_t *channel)
{
	struct query *query = OWNER(stream, struct query, stream);
	*channel = 0;
	size_t size = query->size - query->sent;
	if (size == 0)
		return 0;
	if (size > room)
		size = room;
	memcpy(payload, query->message + query->sent, size);
	query->sent += size;
	if (query->sent == query->size)
		stream_eof(stream);
	return size;
}

static void on_data(struct stream *stream, const uint8_t *data, size_t size)
{
	struct query *query = OWNER(stream, struct query, stream);
	if (query->received + size > sizeof query->answer || stream->closing)
		return;
	memcpy(query->answer + query->received, data, size);
	query->received += size;
	size_t length = query->received < 2 ? sizeof query->answer : (size_t)query->answer[0] << 8 | query->answer[1];
	if (query->received < 2 + length)
		return;
	if (length > dns_answer_limit(query->message + 2, query->size - 2))
		length = dns_truncate(query->answer + 2, length);
	send_answer(query, query->answer + 2, length);
	query->size = 2; /* answered: no failure will follow */
	stream_close(stream);
}

static void on_late(struct timer *timer)
{
	stream_close(&OWNER(timer, struct query, timer)->stream);
}

static void on_gone(struct stream *stream, bool by_host)
{
	struct query *query = OWNER(stream, struct query, stream);
	(void)by_host;
	if (query->size > 2)
		send_failure(query);
	timer_clear(&query->timer);
	queries--;
	loop_free(query);
}

static const struct stream_ops query_ops = {.produce = produce, .on_data = on_data, .on_gone = on_gone};

/* False when no datagram is left. */
static bool next_query(void)
{
	struct query *query = malloc(sizeof *query);
	if (query == NULL)
		return false;
	memset(query, 0, offsetof(struct query, message));
	socklen_t size = sizeof query->client;
	ssize_t count = recvfrom(udp.fd, query->message + 2, QUERY_MAX, 0, (struct sockaddr *)&query->client, &size);
	if (count < 0) {
		free(query);
		return errno == EINTR;
	}
	query->message[0] = count >> 8;
	query->message[1] = count;
	query->size = 2 + count;
	if (queries >= DATAGRAMS_MAX || !stream_open(&query->stream, &query_ops, "dns")) {
		send_failure(query);
		free(query);
		return true;
	}
	answer_add(&query->stream.answer, "transport", "udp");
	queries++;
	timer_set(&query->timer, ANSWER_MS, on_late);
	return true;
}

/* A flood of datagrams must not keep the loop: the rest comes in the next turn. */
static void serve_some(struct timer *timer)
{
	for (int i = 0; i < QUERIES_PER_TURN; i++)
		if (!next_query())
			return;
	timer_set(timer, 0, serve_some);
}

static void on_datagram(struct source *source, uint32_t events)
{
	(void)source;
	(void)events;
	static struct timer again;
	serve_some(&again);
}

void dns_start(const struct sockaddr_in *address)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (const struct sockaddr *)address, sizeof *address) != 0 || !source_add(&udp, fd, on_datagram)) {
		agent_log("cannot serve names over UDP: %s", strerror(errno));
		if (fd >= 0)
			close(fd);
	}
}
