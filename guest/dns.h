/* DNS over UDP for the guest's programs: each datagram becomes a stream to the host. The first half is pure. */
#ifndef PRIMORDIA_DNS_H
#define PRIMORDIA_DNS_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>

enum {
	DNS_HEADER = 12,
	DNS_UDP_MAX = 1232, /* what passes any link unfragmented (DNS flag day 2020) */
};

/* The largest answer that the asker of this query takes over UDP: its EDNS size (RFC 6891), at most DNS_UDP_MAX, else 512. */
size_t dns_answer_limit(const uint8_t *query, size_t size);

/* Cut a message to header and question with TC set (RFC 2181, 9), so that the asker comes again by TCP. New size. */
size_t dns_truncate(uint8_t *message, size_t size);

/* Turn a query in place into an answer SERVFAIL; the new size, 0 when it is no query. */
size_t dns_servfail(uint8_t *message, size_t size);

/* Serve UDP on the address. */
void dns_start(const struct sockaddr_in *address);

#endif
