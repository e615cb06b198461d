/* Tar streams (POSIX.1-2001 ustar and pax; GNU long names are read too): files, folders, links, FIFOs. */
#ifndef PRIMORDIA_TAR_H
#define PRIMORDIA_TAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { TAR_BLOCK = 512, TAR_PATH_MAX = 4096 };

enum tar_type {
	TAR_FILE = '0',
	TAR_HARDLINK = '1',
	TAR_SYMLINK = '2',
	TAR_FOLDER = '5',
	TAR_FIFO = '6',
	TAR_PAX = 'x',
	TAR_PAX_GLOBAL = 'g',
	TAR_GNU_NAME = 'L',
	TAR_GNU_LINK = 'K',
};

struct tar_entry {
	char path[TAR_PATH_MAX], link[TAR_PATH_MAX];
	char type;
	mode_t mode;
	uint64_t uid, gid, size;
	int64_t mtime;
};

/* ---- tar_header.c: pure ---- */

/* The ustar header of an entry, values that do not fit left out (a pax header says them). */
void tar_format_header(const struct tar_entry *entry, uint8_t block[TAR_BLOCK]);

/* The records of a pax header for what ustar cannot say; their size, 0 when it can say all. -1 when `room` is short. */
long tar_format_pax(const struct tar_entry *entry, char *records, size_t room);

/* Read a header. False when the checksum or a number is wrong. */
bool tar_parse_header(const uint8_t block[TAR_BLOCK], struct tar_entry *entry);

/* Apply pax records to an entry. False when they are malformed. */
bool tar_parse_pax(const char *records, size_t size, struct tar_entry *entry, unsigned *seen);

enum { PAX_PATH = 1, PAX_LINK = 2, PAX_SIZE = 4, PAX_UID = 8, PAX_GID = 16, PAX_MTIME = 32 };

/* Make a path relative to the target and clean (no `.`, no doubled slash) in place. False when it is absolute, has a
 * `..`, or is too long. The result is empty for the target itself. */
bool tar_clean_path(char *path);

/* ---- jobs, run in a forked child: descriptor 0 or 1 is the stream, the result an errno ---- */

int tar_create_job(const char *path);
int tar_extract_job(const char *folder);

#endif
