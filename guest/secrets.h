/* Files that the host gives for this identity and no other, each on our own tmpfs and bound to its place in the root. */
#ifndef PRIMORDIA_SECRETS_H
#define PRIMORDIA_SECRETS_H

#include "params.h"
#include "rootfs.h"

/* The folder on the tmpfs behind the root. */
void secrets_start(int folder);

/* Remove those of the identity before, unless `inherit_secrets` is 1; then place the `secret` parameters. */
bool secrets_replace(const struct params *params, struct failure *failure);

#endif
