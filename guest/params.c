#define _GNU_SOURCE
#include "params.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool params_valid(const struct params *params)
{
	const char *end = params->data + params->size;
	if (params->size > 0 && end[-1] != 0)
		return false;
	for (const char *at = params->data; at < end; at += strlen(at) + 1)
		if (strchr(at, '=') == NULL || *at == '=')
			return false;
	return true;
}

const char *params_next(const struct params *params, const char *key, const char *value)
{
	size_t length = strlen(key);
	const char *at = value ? value + strlen(value) + 1 : params->data;
	for (; at < params->data + params->size; at += strlen(at) + 1)
		if (strncmp(at, key, length) == 0 && at[length] == '=')
			return at + length + 1;
	return NULL;
}

const char *params_get(const struct params *params, const char *key)
{
	return params_next(params, key, NULL);
}

char **params_all(const struct params *params, const char *key)
{
	size_t count = 0;
	for (const char *value = NULL; (value = params_next(params, key, value));)
		count++;
	char **all = calloc(count + 1, sizeof *all);
	if (all == NULL)
		return NULL;
	count = 0;
	for (const char *value = NULL; (value = params_next(params, key, value));)
		all[count++] = (char *)value;
	return all;
}

long long params_number(const struct params *params, const char *key, long long low, long long high, long long otherwise)
{
	const char *text = params_get(params, key);
	char *end;
	if (text == NULL || *text == 0)
		return otherwise;
	long long number = strtoll(text, &end, 10);
	return *end || number < low || number > high ? otherwise : number;
}

static int hex_digit(char digit)
{
	if (digit >= '0' && digit <= '9')
		return digit - '0';
	digit |= 0x20;
	return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

long hex_decode(const char *hex, size_t digits, uint8_t *out)
{
	if (digits % 2)
		return -1;
	for (size_t i = 0; i < digits; i += 2) {
		int high = hex_digit(hex[i]), low = hex_digit(hex[i + 1]);
		if (high < 0 || low < 0)
			return -1;
		out[i / 2] = high << 4 | low;
	}
	return (long)(digits / 2);
}

static void answer_text(struct answer *answer, const char *key, const char *format, va_list values)
{
	size_t room = sizeof answer->data - answer->used;
	size_t start = strlen(key) + 1;
	if (room < start + 2)
		return;
	char *at = answer->data + answer->used;
	memcpy(at, key, start - 1);
	at[start - 1] = '=';
	int length = vsnprintf(at + start, room - start, format, values);
	size_t kept = length < 0 ? 0 : (size_t)length < room - start ? (size_t)length : room - start - 1;
	at[start + kept] = 0;
	answer->used += start + kept + 1;
}

void answer_add(struct answer *answer, const char *key, const char *format, ...)
{
	va_list values;
	va_start(values, format);
	answer_text(answer, key, format, values);
	va_end(values);
}

char *hex_encode(char *out, const uint8_t *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		*out++ = "0123456789abcdef"[bytes[i] >> 4];
		*out++ = "0123456789abcdef"[bytes[i] & 15];
	}
	return out;
}

/* All of it, or nothing where there is no room. */
static void answer_parts(struct answer *answer, const char *const *parts, size_t count)
{
	size_t wanted = 1;
	for (size_t i = 0; i < count; i++)
		wanted += strlen(parts[i]);
	if (wanted > sizeof answer->data - answer->used)
		return;
	for (size_t i = 0; i < count; i++) {
		size_t length = strlen(parts[i]);
		memcpy(answer->data + answer->used, parts[i], length);
		answer->used += length;
	}
	answer->data[answer->used++] = 0;
}

void answer_number(struct answer *answer, const char *prefix, const char *name, unsigned long number)
{
	char digits[24], *at = digits + sizeof digits;
	*--at = 0;
	do
		*--at = '0' + number % 10;
	while (number /= 10);
	answer_parts(answer, (const char *[]){prefix, name, "=", at}, 4);
}

void answer_hex(struct answer *answer, const char *key, const uint8_t *bytes, size_t count)
{
	char digits[65];
	*hex_encode(digits, bytes, count < 32 ? count : 32) = 0;
	answer_parts(answer, (const char *[]){key, "=", digits}, 3);
}

void answer_error(struct answer *answer, int number, const char *format, ...)
{
	char message[700];
	va_list values;
	va_start(values, format);
	vsnprintf(message, sizeof message, format, values);
	va_end(values);
	const char *name = strerrorname_np(number);
	answer_add(answer, "error", "%s", name ? name : "EIO");
	answer_add(answer, "message", "%s: %s", message, strerror(number));
}
