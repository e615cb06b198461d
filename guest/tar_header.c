#include "tar.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Places in a ustar header: POSIX.1-2017, pax, "ustar Interchange Format". */
enum {
	AT_NAME = 0, NAME_SIZE = 100,
	AT_MODE = 100, AT_UID = 108, AT_GID = 116, ID_SIZE = 8,
	AT_SIZE = 124, AT_MTIME = 136, LONG_SIZE = 12,
	AT_CHECKSUM = 148, CHECKSUM_SIZE = 8,
	AT_TYPE = 156,
	AT_LINK = 157,
	AT_MAGIC = 257,
	AT_PREFIX = 345, PREFIX_SIZE = 155,
};

static const uint64_t id_max = 07777777, long_max = 077777777777ull;

static void put_octal(uint8_t *field, size_t size, uint64_t value)
{
	char text[24];
	snprintf(text, sizeof text, "%0*llo", (int)size - 1, (unsigned long long)value);
	memcpy(field, text, size);
}

static void put_text(uint8_t *field, size_t size, const char *text)
{
	size_t length = strnlen(text, size);
	memcpy(field, text, length);
}

static unsigned checksum(const uint8_t block[TAR_BLOCK])
{
	unsigned sum = CHECKSUM_SIZE * ' ';
	for (int i = 0; i < TAR_BLOCK; i++)
		if (i < AT_CHECKSUM || i >= AT_CHECKSUM + CHECKSUM_SIZE)
			sum += block[i];
	return sum;
}

void tar_format_header(const struct tar_entry *entry, uint8_t block[TAR_BLOCK])
{
	memset(block, 0, TAR_BLOCK);
	put_text(block + AT_NAME, NAME_SIZE, entry->path);
	put_octal(block + AT_MODE, ID_SIZE, entry->mode & 07777);
	put_octal(block + AT_UID, ID_SIZE, entry->uid > id_max ? 0 : entry->uid);
	put_octal(block + AT_GID, ID_SIZE, entry->gid > id_max ? 0 : entry->gid);
	put_octal(block + AT_SIZE, LONG_SIZE, entry->size > long_max ? 0 : entry->size);
	put_octal(block + AT_MTIME, LONG_SIZE, entry->mtime < 0 || (uint64_t)entry->mtime > long_max ? 0 : (uint64_t)entry->mtime);
	block[AT_TYPE] = entry->type;
	put_text(block + AT_LINK, NAME_SIZE, entry->link);
	memcpy(block + AT_MAGIC, "ustar\00000", 8);
	put_octal(block + AT_CHECKSUM, CHECKSUM_SIZE - 1, checksum(block));
	block[AT_CHECKSUM + CHECKSUM_SIZE - 1] = ' ';
}

static bool add_record(char *records, size_t room, size_t *used, const char *key, const char *value)
{
	size_t rest = strlen(key) + strlen(value) + 3, total = rest + 1;
	char digits[24];
	/* the length counts its own digits */
	while (total != rest + (size_t)snprintf(digits, sizeof digits, "%zu", total))
		total = rest + strlen(digits);
	if (*used + total + 1 > room)
		return false;
	snprintf(records + *used, room - *used, "%zu %s=%s\n", total, key, value);
	*used += total;
	return true;
}

static bool add_number(char *records, size_t room, size_t *used, const char *key, long long value)
{
	char text[24];
	snprintf(text, sizeof text, "%lld", value);
	return add_record(records, room, used, key, text);
}

long tar_format_pax(const struct tar_entry *entry, char *records, size_t room)
{
	size_t used = 0;
	bool fits = (strlen(entry->path) <= NAME_SIZE || add_record(records, room, &used, "path", entry->path)) &&
	            (strlen(entry->link) <= NAME_SIZE || add_record(records, room, &used, "linkpath", entry->link)) &&
	            (entry->size <= long_max || add_number(records, room, &used, "size", (long long)entry->size)) &&
	            (entry->uid <= id_max || add_number(records, room, &used, "uid", (long long)entry->uid)) &&
	            (entry->gid <= id_max || add_number(records, room, &used, "gid", (long long)entry->gid)) &&
	            ((entry->mtime >= 0 && (uint64_t)entry->mtime <= long_max) ||
	             add_number(records, room, &used, "mtime", entry->mtime));
	return fits ? (long)used : -1;
}

/* Octal digits, blanks around them; or, with the top bit set, GNU's base 256 in two's complement. */
static bool get_number(const uint8_t *field, size_t size, int64_t *value)
{
	if (field[0] & 0x80) {
		uint64_t number = field[0] & 0x40 ? ~0ull << 6 | (field[0] & 0x3f) : field[0] & 0x3fu;
		for (size_t i = 1; i < size; i++) {
			if (number >> 55 != 0 && number >> 55 != 0x1ff)
				return false;
			number = number << 8 | field[i];
		}
		*value = (int64_t)number;
		return true;
	}
	uint64_t number = 0;
	size_t i = 0;
	while (i < size && field[i] == ' ')
		i++;
	for (; i < size && field[i] >= '0' && field[i] <= '7'; i++)
		number = number << 3 | (field[i] - '0');
	*value = (int64_t)number;
	return i == size || field[i] == 0 || field[i] == ' ';
}

static bool get_unsigned(const uint8_t *field, size_t size, uint64_t *value)
{
	int64_t number;
	if (!get_number(field, size, &number) || number < 0)
		return false;
	*value = (uint64_t)number;
	return true;
}

bool tar_parse_header(const uint8_t block[TAR_BLOCK], struct tar_entry *entry)
{
	uint64_t sum, mode;
	if (!get_unsigned(block + AT_CHECKSUM, CHECKSUM_SIZE, &sum) || sum != checksum(block))
		return false;
	if (!get_unsigned(block + AT_MODE, ID_SIZE, &mode) || !get_unsigned(block + AT_UID, ID_SIZE, &entry->uid) ||
	    !get_unsigned(block + AT_GID, ID_SIZE, &entry->gid) || !get_unsigned(block + AT_SIZE, LONG_SIZE, &entry->size) ||
	    !get_number(block + AT_MTIME, LONG_SIZE, &entry->mtime))
		return false;
	entry->mode = mode & 07777;
	entry->type = block[AT_TYPE] == 0 || block[AT_TYPE] == '7' ? TAR_FILE : (char)block[AT_TYPE];
	bool has_prefix = memcmp(block + AT_MAGIC, "ustar\0", 6) == 0 && block[AT_PREFIX];
	snprintf(entry->path, sizeof entry->path, "%.*s%s%.*s", has_prefix ? PREFIX_SIZE : 0, (const char *)block + AT_PREFIX,
	         has_prefix ? "/" : "", NAME_SIZE, (const char *)block + AT_NAME);
	snprintf(entry->link, sizeof entry->link, "%.*s", NAME_SIZE, (const char *)block + AT_LINK);
	return true;
}

static bool set_text(char *field, const char *value, size_t size)
{
	if (size >= TAR_PATH_MAX || memchr(value, 0, size))
		return false;
	memcpy(field, value, size);
	field[size] = 0;
	return true;
}

/* A pax number may have a fraction, which is cut. */
static bool set_number(const char *value, size_t size, int64_t *number)
{
	char text[32], *end;
	if (size == 0 || size >= sizeof text)
		return false;
	memcpy(text, value, size);
	text[size] = 0;
	*number = strtoll(text, &end, 10);
	return end != text && (*end == 0 || *end == '.');
}

static bool apply_record(const char *key, size_t key_size, const char *value, size_t size, struct tar_entry *entry, unsigned *seen)
{
	static const struct {
		const char *key;
		unsigned bit;
	} known[] = {{"path", PAX_PATH}, {"linkpath", PAX_LINK}, {"size", PAX_SIZE},
	             {"uid", PAX_UID}, {"gid", PAX_GID}, {"mtime", PAX_MTIME}};
	unsigned bit = 0;
	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (strlen(known[i].key) == key_size && memcmp(known[i].key, key, key_size) == 0)
			bit = known[i].bit;
	*seen |= bit;
	if (bit == PAX_PATH)
		return set_text(entry->path, value, size);
	if (bit == PAX_LINK)
		return set_text(entry->link, value, size);
	int64_t number;
	if (bit == 0)
		return true;
	if (!set_number(value, size, &number) || (bit != PAX_MTIME && number < 0))
		return false;
	if (bit == PAX_SIZE)
		entry->size = (uint64_t)number;
	else if (bit == PAX_UID)
		entry->uid = (uint64_t)number;
	else if (bit == PAX_GID)
		entry->gid = (uint64_t)number;
	else
		entry->mtime = number;
	return true;
}

bool tar_parse_pax(const char *records, size_t size, struct tar_entry *entry, unsigned *seen)
{
	for (size_t at = 0; at < size;) {
		size_t length = 0, digits = 0;
		for (; at + digits < size && digits < 8 && records[at + digits] >= '0' && records[at + digits] <= '9'; digits++)
			length = length * 10 + (records[at + digits] - '0');
		if (digits == 0 || length > size - at || length < digits + 4 || records[at + digits] != ' ' ||
		    records[at + length - 1] != '\n')
			return false;
		const char *key = records + at + digits + 1, *end = records + at + length - 1;
		const char *equals = memchr(key, '=', end - key);
		if (equals == NULL || !apply_record(key, equals - key, equals + 1, end - equals - 1, entry, seen))
			return false;
		at += length;
	}
	return true;
}

bool tar_clean_path(char *path)
{
	char *out = path;
	if (*path == '/' || strlen(path) >= TAR_PATH_MAX)
		return false;
	for (char *part = path; *part;) {
		size_t length = strcspn(part, "/");
		char *next = part + length + (part[length] == '/');
		if (length == 2 && memcmp(part, "..", 2) == 0)
			return false;
		if (length > 0 && !(length == 1 && *part == '.')) {
			if (out != path)
				*out++ = '/';
			memmove(out, part, length);
			out += length;
		}
		part = next;
	}
	*out = 0;
	return true;
}
