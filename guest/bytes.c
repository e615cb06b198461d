#include "bytes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool bytes_append(struct bytes *bytes, const void *data, size_t size)
{
	if (size == 0)
		return true;
	if (bytes->start + bytes->used + size > bytes->size) {
		if (bytes->used)
			memmove(bytes->data, bytes->data + bytes->start, bytes->used);
		bytes->start = 0;
	}
	if (bytes->used + size > bytes->size) {
		size_t wanted = bytes->size ? bytes->size : 4096;
		while (wanted < bytes->used + size)
			wanted *= 2;
		uint8_t *grown = realloc(bytes->data, wanted);
		if (grown == NULL)
			return false;
		bytes->data = grown;
		bytes->size = wanted;
	}
	memcpy(bytes->data + bytes->start + bytes->used, data, size);
	bytes->used += size;
	return true;
}

long bytes_flush(struct bytes *bytes, int fd)
{
	long total = 0;
	while (bytes->used > 0) {
		ssize_t count = write(fd, bytes->data + bytes->start, bytes->used);
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0 && errno == EAGAIN)
			break;
		if (count <= 0)
			return -1;
		bytes->start += count;
		bytes->used -= count;
		total += count;
	}
	if (bytes->used == 0)
		bytes_free(bytes);
	return total;
}

void bytes_free(struct bytes *bytes)
{
	free(bytes->data);
	*bytes = (struct bytes){0};
}
