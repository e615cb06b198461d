#ifndef PRIMORDIA_BOOT_H
#define PRIMORDIA_BOOT_H

/* From the kernel's hands to an open channel: file systems, modules, port. Returns the port's descriptor. */
int boot(void);

/* Descriptors 0 and 1 to /dev/null, 2 to the kernel's log. */
void boot_stdio(void);

#endif
