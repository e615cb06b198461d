/* A byte queue: what came from the host and waits until a descriptor takes it. Bounded by the stream's window. */
#ifndef PRIMORDIA_BYTES_H
#define PRIMORDIA_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bytes {
	uint8_t *data;
	size_t start, used, size;
};

/* False when memory is short; nothing was added then. */
bool bytes_append(struct bytes *bytes, const void *data, size_t size);

/* Write what the descriptor takes. Returns the bytes written (0 when it takes none now), or -1 on an error. */
long bytes_flush(struct bytes *bytes, int fd);

void bytes_free(struct bytes *bytes);

#endif
