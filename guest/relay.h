#ifndef PRIMORDIA_RELAY_H
#define PRIMORDIA_RELAY_H

/* Where the guest's programs reach the in-guest API (TCP 80) and the name server (53). */
#define OWN_ADDRESS "169.254.169.254"
#define API_SOCKET "/run/primordia.sock"
/* The warmed interpreter of a template (interpreter.py). */
#define INTERPRETER_SOCKET "/run/primordia/interpreter.sock"

#endif
