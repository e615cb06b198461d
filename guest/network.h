/* The guest's addresses and routes, by netlink (rtnetlink(7)); every step may be repeated. */
#ifndef PRIMORDIA_NETWORK_H
#define PRIMORDIA_NETWORK_H

#include "params.h"

/* Bring up lo with our own address on it, and the card, if there is one, without any. Returns 0 or an errno and the step. */
int network_prepare(const char **step);

/* Give the network card address, mac, gateway, gateway_mac and mtu instead of those it had, end the connections of the
 * address it had, and read back; without `address`, only take away. Returns 0 or an errno and the step. */
int network_replace(const struct params *params, const char **step);

#endif
