/* What goes out next, and whose turn it is. */
#ifndef PRIMORDIA_SENDING_H
#define PRIMORDIA_SENDING_H

#include "channel.h"

/* A host has greeted: its HELLO_ACK is due, with this nonce. */
void sending_greeted(const uint8_t nonce[16]);

void sending_pong(const uint8_t payload[8]);

/* A stream that is no bulk stream was heard of: bulk has to wait a little. */
void sending_heard(const struct stream *stream);

/* Whether the number is one that a stream of ours has had since the greeting. */
bool sending_knows(uint32_t id);

/* Write the next frame to `out` (room for FRAME_MAX); its size, 0 when there is nothing to send. */
size_t sending_next(uint8_t *out);

#endif
