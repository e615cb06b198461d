/* Parameters: NUL-terminated strings `key=value`; a key may repeat. Used in OPEN, CONTROL, REFUSED and CLOSE. */
#ifndef PRIMORDIA_PARAMS_H
#define PRIMORDIA_PARAMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct params {
	const char *data;
	size_t size;
};

/* Whether the bytes are well formed: empty, or ending in NUL, each string with a `=` after at least one byte. */
bool params_valid(const struct params *params);

/* The first value of a key, or NULL. */
const char *params_get(const struct params *params, const char *key);

/* The value of the same key that follows `value`, or NULL; with NULL the first. */
const char *params_next(const struct params *params, const char *key, const char *value);

/* All values of a key as a NULL-terminated array in one allocation that the caller frees; the strings are not copied. */
char **params_all(const struct params *params, const char *key);

/* A decimal number in [low, high], or `otherwise` when the key is missing or no such number. */
long long params_number(const struct params *params, const char *key, long long low, long long high, long long otherwise);

/* Lower-case or upper-case hex digits to bytes; returns their count, or -1. `out` has room for strlen(hex) / 2. */
long hex_decode(const char *hex, size_t digits, uint8_t *out);

/* Building: what does not fit is cut, and the string still ends in NUL. */
struct answer {
	size_t used;
	char data[1024];
};

__attribute__((format(printf, 3, 4))) void answer_add(struct answer *answer, const char *key, const char *format, ...);

/* The same without printf, which under emulation alone costs a fork a millisecond: `PREFIXname=12`, `key=0aff`. */
void answer_number(struct answer *answer, const char *prefix, const char *name, unsigned long number);
void answer_hex(struct answer *answer, const char *key, const uint8_t *bytes, size_t count);

/* Two lower-case digits for each byte, without a NUL; returns their end. */
char *hex_encode(char *out, const uint8_t *bytes, size_t count);

/* `error=ENOENT`, `message=...: No such file or directory`. */
__attribute__((format(printf, 3, 4))) void answer_error(struct answer *answer, int number, const char *format, ...);

#endif
