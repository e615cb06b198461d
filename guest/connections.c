/* A fork wakes with its parent's connections, whose other ends talk with the parent. sock_diag(7) lists sockets and, with
 * SOCK_DESTROY, ends them as `ss -K` does. */
#define _GNU_SOURCE
#include "connections.h"

#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { STATE_LISTEN = 10, STATES = 0xfff & ~(1 << STATE_LISTEN), SOCKETS_MAX = 65536 };

struct request {
	struct nlmsghdr header;
	struct inet_diag_req_v2 body;
};

/* What is to be destroyed: listed first, for a table that is changed while it is listed may be listed wrongly. */
struct found {
	struct inet_diag_sockid *ids;
	size_t count, size;
};

static bool is_of(const struct inet_diag_msg *message, struct in_addr address)
{
	const struct inet_diag_sockid *id = &message->id;
	if (message->idiag_family == AF_INET)
		return id->idiag_src[0] == address.s_addr && id->idiag_dst[0] != 0;
	return id->idiag_src[0] == 0 && id->idiag_src[1] == 0 && id->idiag_src[2] == htonl(0xffff) &&
	       id->idiag_src[3] == address.s_addr && id->idiag_dst[3] != 0;
}

static int add(struct found *found, const struct inet_diag_sockid *id)
{
	if (found->count == found->size) {
		size_t size = found->size ? 2 * found->size : 64;
		void *grown = size > SOCKETS_MAX ? NULL : realloc(found->ids, size * sizeof *found->ids);
		if (grown == NULL)
			return ENOMEM;
		found->ids = grown;
		found->size = size;
	}
	found->ids[found->count++] = *id;
	return 0;
}

/* One datagram of the answer. Returns 0 when more will come, -1 at the end, or an errno. */
static int take(const char *data, ssize_t size, struct in_addr address, struct found *found)
{
	for (const struct nlmsghdr *at = (const void *)data; NLMSG_OK(at, (size_t)size); at = NLMSG_NEXT(at, size)) {
		if (at->nlmsg_type == NLMSG_DONE)
			return -1;
		if (at->nlmsg_type == NLMSG_ERROR)
			return -((const struct nlmsgerr *)NLMSG_DATA(at))->error;
		const struct inet_diag_msg *message = NLMSG_DATA(at);
		int error = is_of(message, address) ? add(found, &message->id) : 0;
		if (error)
			return error;
	}
	return 0;
}

static int list(int fd, struct request *request, struct in_addr address, struct found *found)
{
	static char data[16384] __attribute__((aligned(8)));
	request->header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
	request->header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
	memset(&request->body.id, 0, sizeof request->body.id);
	if (send(fd, request, sizeof *request, 0) < 0)
		return errno;
	int end = 0;
	while (end == 0) {
		ssize_t size = recv(fd, data, sizeof data, 0);
		if (size <= 0)
			return size < 0 ? errno : EIO;
		end = take(data, size, address, found);
	}
	return end < 0 ? 0 : end;
}

/* One that has ended by itself meanwhile (ENOENT) is as good. */
static int destroy(int fd, struct request *request, const struct inet_diag_sockid *id)
{
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
		char rest[256];
	} answer;
	request->header.nlmsg_type = SOCK_DESTROY;
	request->header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
	request->body.id = *id;
	if (send(fd, request, sizeof *request, 0) < 0 || recv(fd, &answer, sizeof answer, 0) < 0)
		return errno;
	return answer.error.error == -ENOENT ? 0 : -answer.error.error;
}

static int destroy_kind(int fd, int family, int protocol, struct in_addr address)
{
	struct request request = {
		.header.nlmsg_len = sizeof request,
		.body = {.sdiag_family = family, .sdiag_protocol = protocol, .idiag_states = STATES},
	};
	struct found found = {0};
	int error = list(fd, &request, address, &found);
	for (size_t i = 0; i < found.count && !error; i++)
		error = destroy(fd, &request, &found.ids[i]);
	free(found.ids);
	return error;
}

int connections_destroy(struct in_addr address)
{
	static const struct {
		int family, protocol;
	} kinds[] = {{AF_INET, IPPROTO_TCP}, {AF_INET6, IPPROTO_TCP}, {AF_INET, IPPROTO_UDP}, {AF_INET6, IPPROTO_UDP}};
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	int error = fd < 0 ? errno : 0;
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds && !error; i++)
		error = destroy_kind(fd, kinds[i].family, kinds[i].protocol, address);
	if (fd >= 0)
		close(fd);
	return error;
}
