/* Files below /etc that make the guest who it is; each is read back. */
#ifndef PRIMORDIA_ETC_H
#define PRIMORDIA_ETC_H

#include "params.h"

/* machine-id. Returns 0 or an errno. */
int etc_write_machine_id(const struct params *params);

/* hostname, hosts, resolv.conf. Returns 0, or an errno and the file. */
int etc_write_names(const struct params *params, const char **file);

/* hosts alone, with the names in `host` parameters (NAME=ADDRESS). Returns 0 or an errno. */
int etc_write_hosts(const struct params *params);

/* Whether the file has just this content: 0, EIO when it has not, or another errno. */
int etc_compare(const char *path, const void *content, size_t size);

#endif
