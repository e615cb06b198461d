/* The table of open streams, shared by channel.c (what comes in) and sending.c (what goes out). */
#ifndef PRIMORDIA_STREAMS_H
#define PRIMORDIA_STREAMS_H

#include "channel.h"

enum {
	STREAMS_MAX = 256,
	REFUSALS = STREAMS_MAX - HOST_STREAMS_MAX - GUEST_STREAMS_MAX, /* places kept for saying no */
};

extern struct stream *streams[STREAMS_MAX];

struct stream *streams_find(uint32_t id);

/* How many of the open streams the host has opened. */
unsigned streams_of_host(void);

/* Take a stream out of the table and tell its owner. */
void streams_forget(struct stream *stream, bool by_host);
void streams_forget_all(void);

#endif
