#ifndef PRIMORDIA_CONNECTIONS_H
#define PRIMORDIA_CONNECTIONS_H

#include <netinet/in.h>

/* End every TCP connection and connected UDP socket of an address: their programs see ECONNABORTED. Listening sockets
 * stay. The address must be gone from its card, so that nothing of this is heard outside. Returns 0 or an errno; a kernel
 * without that service (ENOENT, EOPNOTSUPP) leaves them to their own timeouts, and they still cannot send. */
int connections_destroy(struct in_addr address);

#endif
