/* Which boot, or fork, of the guest this is: one id for the host's HELLO_ACK and for the guest's own programs. */
#ifndef PRIMORDIA_BOOTID_H
#define PRIMORDIA_BOOTID_H

#include <stdint.h>

/* 16 bytes, a random UUID (RFC 9562, version 4). */
const uint8_t *boot_id(void);

/* The first host of this boot: choose one, from our entropy and its nonce. Later ones change nothing. */
void boot_id_greeted(const uint8_t nonce[16]);

/* Put a file of `folder` over /proc/sys/kernel/random/boot_id, which the kernel itself never changes. 0 or an errno. */
int boot_id_cover(int folder);

/* Choose anew, and tell programs. To be called when the kernel has fresh entropy. Read back; 0 or an errno. */
int boot_id_renew(void);

#endif
