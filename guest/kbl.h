#ifndef PRIMORDIA_KBL_H
#define PRIMORDIA_KBL_H

#include <stddef.h>

/* The guest's command line; returns the exit code. */
int kbl_main(int argc, char **argv);

/* Print a JSON document as lines `path: value`; returns 0, or -1 when it is no JSON. Pure but for the output. */
int json_print_lines(const char *text, size_t size);

#endif
