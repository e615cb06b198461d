#define _GNU_SOURCE
#include "network.h"

#include "connections.h"
#include "relay.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

struct settings {
	struct in_addr address, gateway;
	uint8_t mac[6], gateway_mac[6];
	unsigned mtu;
};

/* What the card has now; zeros when it has none. `rehearsed`: it was given in a rehearsal, and no user process of the fork has
 * run since that could have changed it. So with `way`, the route and MTU that a card without an address was given. */
static struct own {
	struct settings has;
	int index;
	bool rehearsed, way;
} own;

/* The card, once it was found. A fork has its parent's, with another MAC. */
static struct {
	int index;
	char name[IF_NAMESIZE];
} card;

/* Kept open, for what is made and closed once more costs each fork milliseconds: to change the network, and to ask for it. */
static int changing = -1, asking = -1;
static uint32_t sequence;

/* Requests that go to the kernel together; it answers each, in order, and goes on after an error. */
struct batch {
	size_t used, count;
	struct {
		const char *step;
		int forgiven; /* an error that means: it is so already */
	} requests[8];
	char data[1024] __attribute__((aligned(8)));
};

static struct nlmsghdr *last; /* the request that is being built */

static void begin(struct batch *batch, const char *step, int forgiven, int type, int flags, const void *family, size_t size)
{
	batch->requests[batch->count].step = step;
	batch->requests[batch->count].forgiven = forgiven;
	batch->count++;
	last = (void *)(batch->data + batch->used);
	*last = (struct nlmsghdr){
		.nlmsg_len = NLMSG_LENGTH(size),
		.nlmsg_type = type,
		.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags,
		.nlmsg_seq = ++sequence,
	};
	memcpy(NLMSG_DATA(last), family, size);
	batch->used += NLMSG_ALIGN(last->nlmsg_len);
}

static void add(struct batch *batch, int type, const void *data, size_t size)
{
	struct rtattr *attribute = (void *)((char *)last + NLMSG_ALIGN(last->nlmsg_len));
	attribute->rta_type = type;
	attribute->rta_len = RTA_LENGTH(size);
	memcpy(RTA_DATA(attribute), data, size);
	last->nlmsg_len = NLMSG_ALIGN(last->nlmsg_len) + RTA_ALIGN(attribute->rta_len);
	batch->used = (char *)last + NLMSG_ALIGN(last->nlmsg_len) - batch->data;
}

/* The kernel's acknowledgement of one request, which is there at once; of those before, whatever was left is passed over. */
static int acknowledged(uint32_t number)
{
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
		char rest[512];
	} answer;
	do
		if (recv(changing, &answer, sizeof answer, MSG_DONTWAIT) < 0)
			return errno;
	while (answer.header.nlmsg_seq != number);
	return answer.header.nlmsg_type == NLMSG_ERROR ? -answer.error.error : EIO;
}

/* Returns 0, or the first errno that is not forgiven and its step. */
static int perform(const struct batch *batch, const char **step)
{
	*step = "network";
	if (changing < 0)
		changing = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (changing < 0 || send(changing, batch->data, batch->used, 0) < 0)
		return errno;
	for (size_t i = 0; i < batch->count; i++) {
		int error = acknowledged(sequence - (uint32_t)(batch->count - 1 - i));
		if (error && error != batch->requests[i].forgiven) {
			*step = batch->requests[i].step;
			return error;
		}
	}
	return 0;
}

static void link_up(struct batch *batch, int index, const uint8_t *mac, unsigned mtu)
{
	struct ifinfomsg link = {.ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
	begin(batch, "network card", 0, RTM_NEWLINK, 0, &link, sizeof link);
	if (mac)
		add(batch, IFLA_ADDRESS, mac, 6);
	if (mtu)
		add(batch, IFLA_MTU, &mtu, sizeof mtu);
}

/* The address with prefix length 32: nothing is on the link but the gateway. */
static void change_address(struct batch *batch, int type, int index, struct in_addr address)
{
	struct ifaddrmsg family = {
		.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = index,
		.ifa_scope = index == 1 ? RT_SCOPE_HOST : RT_SCOPE_UNIVERSE,
	};
	if (type == RTM_NEWADDR)
		begin(batch, "network address", EEXIST, type, NLM_F_CREATE | NLM_F_REPLACE, &family, sizeof family);
	else
		begin(batch, "network address before", EADDRNOTAVAIL, type, 0, &family, sizeof family);
	add(batch, IFA_LOCAL, &address, sizeof address);
	add(batch, IFA_ADDRESS, &address, sizeof address);
}

static void change_neighbour(struct batch *batch, int type, int index, struct in_addr address, const uint8_t *mac)
{
	struct ndmsg neighbour = {.ndm_family = AF_INET, .ndm_ifindex = index, .ndm_state = NUD_PERMANENT};
	if (type == RTM_NEWNEIGH)
		begin(batch, "gateway", 0, type, NLM_F_CREATE | NLM_F_REPLACE, &neighbour, sizeof neighbour);
	else
		begin(batch, "gateway before", ENOENT, type, 0, &neighbour, sizeof neighbour);
	add(batch, NDA_DST, &address, sizeof address);
	if (mac)
		add(batch, NDA_LLADDR, mac, 6);
}

/* Without a source the kernel takes the address that the card has when somebody sends. */
static void add_default_route(struct batch *batch, int index, struct in_addr gateway, struct in_addr source)
{
	struct rtmsg route = {
		.rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_BOOT,
		.rtm_scope = RT_SCOPE_UNIVERSE, .rtm_type = RTN_UNICAST, .rtm_flags = RTNH_F_ONLINK,
	};
	begin(batch, "default route", 0, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &route, sizeof route);
	add(batch, RTA_GATEWAY, &gateway, sizeof gateway);
	if (source.s_addr)
		add(batch, RTA_PREFSRC, &source, sizeof source);
	add(batch, RTA_OIF, &index, sizeof index);
}

static int hex_digit(char letter)
{
	if (letter >= '0' && letter <= '9')
		return letter - '0';
	letter |= 0x20;
	return letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
}

/* By hand: the way through sscanf alone would cost a fork milliseconds. */
static bool parse_mac(const char *text, uint8_t mac[6])
{
	if (text == NULL || strlen(text) != 17)
		return false;
	for (int i = 0; i < 6; i++, text += 3) {
		int high = hex_digit(text[0]), low = hex_digit(text[1]);
		if (high < 0 || low < 0 || text[2] != (i < 5 ? ':' : 0))
			return false;
		mac[i] = high << 4 | low;
	}
	return true;
}

/* The first interface that is not lo; a context has one card. */
static void find_card(void)
{
	struct if_nameindex *all = if_nameindex();
	for (struct if_nameindex *one = all; one && one->if_index; one++)
		if (!card.index && one->if_index != 1 && strlen(one->if_name) < IF_NAMESIZE) {
			card.index = (int)one->if_index;
			strcpy(card.name, one->if_name);
		}
	if (all)
		if_freenameindex(all);
}

/* Contexts have IPv4 only; without this the card would send router solicitations to nobody. */
static void disable_ipv6(void)
{
	char path[128];
	snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/disable_ipv6", card.name);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	ssize_t ignored = write(fd, "1", 1);
	(void)ignored;
	close(fd);
}

static int open_asking(void)
{
	if (asking < 0)
		asking = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	return asking < 0 ? errno : 0;
}

/* The card wakes here, in a template, for that costs some milliseconds; without an address it says nothing. */
int network_prepare(const char **step)
{
	struct batch batch = {0};
	struct in_addr ours;
	int lo = (int)if_nametoindex("lo");
	*step = "network";
	int error = open_asking();
	if (error)
		return error;
	find_card();
	inet_pton(AF_INET, OWN_ADDRESS, &ours);
	/* the kernel itself puts 127.0.0.1/8 on lo when it comes up */
	link_up(&batch, lo, NULL, 0);
	change_address(&batch, RTM_NEWADDR, lo, ours);
	if (card.index) {
		disable_ipv6();
		link_up(&batch, card.index, NULL, 0);
	}
	return perform(&batch, step);
}

static bool parse_gateway(const struct params *params, struct settings *settings)
{
	const char *gateway = params_get(params, "gateway");
	settings->mtu = (unsigned)params_number(params, "mtu", 576, 65535, 1500);
	return gateway && inet_pton(AF_INET, gateway, &settings->gateway) == 1 &&
	       parse_mac(params_get(params, "gateway_mac"), settings->gateway_mac);
}

static bool parse_settings(const struct params *params, struct settings *settings)
{
	return parse_gateway(params, settings) && inet_pton(AF_INET, params_get(params, "address"), &settings->address) == 1 &&
	       parse_mac(params_get(params, "mac"), settings->mac);
}

/* The address that a datagram to anywhere leaves from; none is sent, and the socket forgets it all. */
static int ask_source(struct sockaddr_in *from)
{
	const struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
	struct sockaddr_in anywhere = {.sin_family = AF_INET, .sin_port = htons(9)};
	socklen_t size = sizeof *from;
	anywhere.sin_addr.s_addr = htonl(0xc0000201); /* 192.0.2.1, of TEST-NET-1 (RFC 5737) */
	int error = connect(asking, (struct sockaddr *)&anywhere, sizeof anywhere) != 0 ? errno : 0;
	if (!error && getsockname(asking, (struct sockaddr *)from, &size) != 0)
		error = errno;
	if (connect(asking, &nowhere, sizeof nowhere) != 0 && !error)
		error = errno;
	return error;
}

static bool has_mac(const uint8_t mac[6])
{
	struct ifreq request = {0};
	strcpy(request.ifr_name, card.name);
	return open_asking() == 0 && ioctl(asking, SIOCGIFHWADDR, &request) == 0 && memcmp(request.ifr_hwaddr.sa_data, mac, 6) == 0;
}

static int set_mac(const uint8_t mac[6])
{
	struct ifreq request = {.ifr_hwaddr.sa_family = ARPHRD_ETHER};
	if (has_mac(mac))
		return 0;
	strcpy(request.ifr_name, card.name);
	memcpy(request.ifr_hwaddr.sa_data, mac, 6);
	return ioctl(asking, SIOCSIFHWADDR, &request) == 0 ? 0 : errno;
}

/* What it would say of itself to the world. Returns 0 or an errno. */
static int read_back(const struct settings *settings)
{
	struct sockaddr_in from = {0};
	int error = open_asking();
	if (!error)
		error = ask_source(&from);
	if (error)
		return error;
	return from.sin_addr.s_addr == settings->address.s_addr && has_mac(settings->mac) ? 0 : EIO;
}

/* First the address goes, with it every route that used it: from then on no socket can send as who we were. */
static void leave_behind(struct batch *batch, struct in_addr next_gateway)
{
	if (own.has.address.s_addr)
		change_address(batch, RTM_DELADDR, own.index, own.has.address);
	if (own.has.gateway.s_addr && own.has.gateway.s_addr != next_gateway.s_addr)
		change_neighbour(batch, RTM_DELNEIGH, own.index, own.has.gateway, NULL);
}

static int end_connections(struct in_addr address)
{
	if (address.s_addr == 0)
		return 0;
	int error = connections_destroy(address);
	return error == ENOENT || error == EOPNOTSUPP || error == EPROTONOSUPPORT ? 0 : error;
}

static bool is_rehearsal(const struct params *params)
{
	return params_number(params, "rehearsal", 0, 1, 0) == 1;
}

/* A template has no address, but may have the way out that all of its forks will have: they add an address alone. */
static int make_way(const struct params *params, const char **step)
{
	struct settings settings = {0};
	struct batch batch = {0};
	*step = "network settings";
	if (!parse_gateway(params, &settings))
		return EINVAL;
	*step = "network card";
	if (!card.index)
		return ENODEV;
	link_up(&batch, card.index, NULL, settings.mtu);
	add_default_route(&batch, card.index, settings.gateway, settings.address);
	int error = perform(&batch, step);
	if (!error)
		own = (struct own){.has = settings, .index = card.index, .way = is_rehearsal(params)};
	return error;
}

static int lose_network(const struct params *params, const char **step)
{
	struct batch batch = {0};
	struct in_addr before = own.has.address, none = {0};
	leave_behind(&batch, none);
	int error = batch.count ? perform(&batch, step) : 0;
	if (error)
		return error;
	memset(&own, 0, sizeof own);
	*step = "connections before";
	if ((error = end_connections(before)))
		return error;
	return params_get(params, "gateway") ? make_way(params, step) : 0;
}

/* A fork that waited has rehearsed with the network that it gets, more often than not: it is read back then, as ever, and
 * need not be made again. Afterwards programs run, and whatever is there is made anew. */
static bool is_there_already(const struct settings *wanted)
{
	const struct settings *has = &own.has;
	return own.rehearsed && has->address.s_addr == wanted->address.s_addr && has->gateway.s_addr == wanted->gateway.s_addr &&
	       memcmp(has->mac, wanted->mac, 6) == 0 && memcmp(has->gateway_mac, wanted->gateway_mac, 6) == 0 &&
	       has->mtu == wanted->mtu;
}

static bool has_way(const struct settings *wanted)
{
	const struct settings *has = &own.has;
	return own.way && has->address.s_addr == 0 && has->gateway.s_addr == wanted->gateway.s_addr && has->mtu == wanted->mtu;
}

/* The address goes, with all that used it, and another comes. The gateway's entry is made anew each time: the kernel forgets
 * it when the card gets another MAC. */
static int change_network(const struct settings *settings, const char **step)
{
	struct batch batch = {0};
	bool way = has_way(settings);
	if (!way)
		leave_behind(&batch, settings->gateway);
	int error = batch.count ? perform(&batch, step) : 0;
	*step = "network card";
	if (error || (error = set_mac(settings->mac)))
		return error;
	batch = (struct batch){0};
	if (!way)
		link_up(&batch, card.index, NULL, settings->mtu);
	change_address(&batch, RTM_NEWADDR, card.index, settings->address);
	change_neighbour(&batch, RTM_NEWNEIGH, card.index, settings->gateway, settings->gateway_mac);
	if (!way)
		add_default_route(&batch, card.index, settings->gateway, settings->address);
	error = perform(&batch, step);
	if (!error)
		own = (struct own){.has = *settings, .index = card.index};
	return error;
}

int network_replace(const struct params *params, const char **step)
{
	struct settings settings;
	struct in_addr before = own.has.address;
	if (params_get(params, "address") == NULL)
		return lose_network(params, step);
	*step = "network settings";
	if (!parse_settings(params, &settings))
		return EINVAL;
	*step = "network card";
	if (!card.index)
		find_card();
	if (card.index == 0)
		return ENODEV;
	int error = is_there_already(&settings) ? 0 : change_network(&settings, step);
	own.rehearsed = own.way = false;
	if (error)
		return error;
	*step = "connections before";
	if ((error = end_connections(before)))
		return error;
	*step = "network read back";
	error = read_back(&settings);
	own.rehearsed = !error && is_rehearsal(params);
	return error;
}
